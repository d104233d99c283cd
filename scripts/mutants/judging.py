"""What the tests say of one mutant."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from reach import Reach
from sampling import Mutant
from trees import Tree

# Seconds of tests that a mutant is tried with at most: of those that execute its statement, and of the others of its module
# (what is kept for later, as a cache does, is executed in one test and met in others).
_NEAR_SECONDS, _REST_SECONDS = 120.0, 20.0
# How long each may take before it counts as an endless loop: the first tests of a process import the project and make what
# others share, and a busy machine is no fault of the mutant. Together, where a test cannot be ended alone.
_START_SECONDS, _SLOWER = 120.0, 6.0


@dataclass(frozen=True)
class Verdict:
    """``detail``: the test that failed, or why none did; ``tests``: digest of the tests that judged."""

    killed: bool
    detail: str
    seconds: float
    tests: str


def judge(tree: Tree, mutant: Mutant, reach: Reach, tests: str) -> Verdict:
    """Run the tests that can notice ``mutant``, to the first that fails.

    First those of the module's own package that execute the changed statement, then others that do, then others of the module.
    """
    started = time.monotonic()
    near, rest = reach.tests_of(tree, mutant.module, mutant.line)
    tried = 0
    with tree.with_text(mutant.module, mutant.source):
        own = {name for name in near if mutant.package.split("/")[1] in name.split("::")[0].split("/")}
        for group, most in ((own, _NEAR_SECONDS), (near - own, _NEAR_SECONDS), (rest, _REST_SECONDS)):
            chosen = _chosen(group, reach, most)
            if not chosen:
                continue
            failed = _run(tree, {name: _START_SECONDS + _SLOWER * reach.seconds[name] for name in chosen})
            if failed:
                return Verdict(True, failed, time.monotonic() - started, tests)
            tried += len(chosen)
    known = len((near | rest) & reach.seconds.keys())
    detail = f"{tried} of {known} tests tried, {len(near)} execute the statement" if known else "no test reaches the module"
    return Verdict(False, detail, time.monotonic() - started, tests)


def _chosen(group: set[str], reach: Reach, left: float) -> list[str]:
    """Tests of ``group``, the quickest that fit ``left`` seconds, file by file, the quickest file first."""
    chosen: dict[str, list[str]] = {}
    for name in sorted(group & reach.seconds.keys(), key=lambda name: (reach.seconds[name], name)):
        left -= reach.seconds[name]
        if left < 0:
            break
        chosen.setdefault(name.split("::")[0], []).append(name)
    files = sorted(chosen.values(), key=lambda names: sum(reach.seconds[name] for name in names))
    return [name for names in files for name in names]


def _run(tree: Tree, limits: dict[str, float]) -> str:
    """The first test that fails or takes longer than its limit in s, ``out of time`` where it could not be ended, or nothing."""
    chosen, log = tree.folder.with_suffix(".tests"), tree.folder.with_suffix(".log")
    chosen.write_text(json.dumps(limits))
    limit = _START_SECONDS + sum(limit - _START_SECONDS for limit in limits.values())
    options = ["-x", "-q", "-p", "pytest_mutants", "-p", "no:xdist", "--hypothesis-seed=0", "-rfE", "--tb=no"]
    arguments = [*options, *dict.fromkeys(name.split("::")[0] for name in limits)]
    answer = tree.run(arguments=arguments, environment={"MUTANTS_TESTS": str(chosen)}, log=str(log), limit=limit)
    if answer == "out of time":
        return f"out of time after {limit:.0f} s"
    return "" if answer == "0" else _first_failure(log, answer)


def _first_failure(log: Path, answer: str) -> str:
    lines = log.read_text(errors="replace").splitlines()
    named = [line.split(" - ")[0].split(" ", 1)[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if named:
        return named[0]
    # What ends the process, or the fixtures that all tests share, is seen by any test.
    if answer.startswith("-") or any(line.startswith("ImportError while loading conftest") for line in lines):
        return f"tests ended with {answer}"
    raise RuntimeError(f"the tests did not run (status {answer}); see {log}")
