"""What the tests say of one mutant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from reach import Reach
from sampling import Mutant
from trees import Tree

# Seconds of tests that a mutant is tried with at most, and how long they may take before it counts as an endless loop:
# the first tests of a process import torch, and a busy machine is no fault of the mutant.
_MOST_SECONDS = 180.0
_START_SECONDS, _SLOWER = 120.0, 6.0


@dataclass(frozen=True)
class Verdict:
    """``detail``: the test that failed, or why none did; ``tests``: digest of the tests that judged."""

    killed: bool
    detail: str
    seconds: float
    tests: str


def judge(tree: Tree, mutant: Mutant, reach: Reach, tests: str) -> Verdict:
    """Run the tests that can notice ``mutant``, nearest and quickest first, to the first that fails."""
    started = time.monotonic()
    near, rest = reach.tests_of(tree, mutant.module, mutant.line)
    tried = 0
    left = _MOST_SECONDS
    with tree.with_text(mutant.module, mutant.source):
        for group in (near, rest):
            chosen = _chosen(group, reach, left)
            if not chosen:
                continue
            failed = _run(tree, chosen, _START_SECONDS + _SLOWER * sum(reach.seconds[name] for name in chosen))
            if failed:
                return Verdict(True, failed, time.monotonic() - started, tests)
            tried += len(chosen)
            left -= sum(reach.seconds[name] for name in chosen)
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


def _run(tree: Tree, names: list[str], limit: float) -> str:
    """The first test that fails, ``out of time``, or nothing."""
    chosen = tree.folder.with_suffix(".tests")
    chosen.write_text("\n".join(names))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "pytest_mutants",
        "-p",
        "no:xdist",
        "--hypothesis-seed=0",
        "-rfE",
        "--tb=no",
    ]
    files = list(dict.fromkeys(name.split("::")[0] for name in names))
    log = tree.folder.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *files],
            cwd=tree.folder,
            env=tree.environment(MUTANTS_TESTS=str(chosen)),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"out of time after {limit:.0f} s"
        except BaseException:
            _end(process)
            raise
    return "" if status == 0 else _first_failure(log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the tests with the processes of theirs: first so that fixtures can clear up."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _first_failure(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    marks = ("FAILED ", "ERROR ")
    named = [line.split(" - ")[0].split(" ", 1)[1] for line in lines if line.startswith(marks)]
    return named[0] if named else next((line for line in reversed(lines) if line.strip()), "tests did not start")
