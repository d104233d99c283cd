"""Do the tests notice? Random mutants of the packages, each judged by the tests that reach its line.

    python scripts/mutants [--seed 1] [--per-module 1] [--packages sleepfm/signals …] [--jobs 1] [--minutes M] [--out FILE]

Cosmic Ray's operators change one place of a module; a sample of such places, drawn per module by the seed, is tried in a
copy of the tree. A mutant is killed when a test fails or runs out of time. Survivors are printed as differences; those that no
test could tell from the original stand with their reason in ``tests/equivalent_mutants.yaml``, are not tried and counted apart.

What has been found out is kept in ``build/mutants`` for as long as sources (and, of survivors, tests) stay the same: the same
command goes on where it was stopped. Exit status 0 when at least 95 % of the mutants that are not equivalent were killed, else 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import queue
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equivalents import reason_of
from judging import Verdict, judge
from reach import collect
from sampling import Mutant, modules_of, sample
from trees import Tree, digest

ROOT = Path(__file__).resolve().parents[2]
# Copies of the tree, and what is known: this project's own folder, since each copy is removed and made anew.
WORK = ROOT / "build" / "mutants"
PACKAGES = ("sleepfm/signals", "sleepfm/data", "sleepfm/models", "sleepfm/evaluation", "sleepfm/inference")
# Makes data for tests and demonstrations; its figures are checked against recordings, not line by line.
LEFT_OUT = "synthetic"
LEAST_KILLED = 0.95


@dataclass(frozen=True)
class Judged:
    """A mutant with what became of it: ``killed``, ``equivalent`` or ``survived``, and by what."""

    mutant: Mutant
    outcome: str
    by: str


def main() -> int:
    arguments = _arguments()
    modules = modules_of(ROOT, arguments.packages, LEFT_OUT)
    mutants = [mutant for module in modules for mutant in sample(ROOT, module, arguments.seed, arguments.per_module)]
    print(
        f"{len(mutants)} mutants of {len(modules)} modules, seed {arguments.seed}, {arguments.per_module} per module", flush=True
    )
    verdicts = Verdicts(WORK / "verdicts")
    tried = [mutant for mutant in mutants if not reason_of(ROOT, mutant)]
    waiting = [mutant for mutant in tried if verdicts.of(mutant) is None]
    if waiting:
        _judge_all(waiting, verdicts, arguments)
    judged = [one for mutant in mutants if (one := _outcome(mutant, verdicts)) is not None]
    _report(judged)
    if len(judged) < len(mutants):
        print(f"{len(mutants) - len(judged)} mutants not tried in {arguments.minutes:g} minutes; the same command goes on")
        return 1
    share = _share(judged)
    print(f"{share:.1%} of the mutants that are not equivalent were killed (at least {LEAST_KILLED:.0%})")
    if arguments.out:
        arguments.out.write_text(json.dumps(_result(judged, arguments), indent=1) + "\n")
    return 0 if share >= LEAST_KILLED else 1


class Verdicts:
    """What has been found out of mutants of the sources as they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sources = digest(ROOT, ("sleepfm", "shards", "launch", "configs"))
        self.tests = digest(ROOT, ("tests",))

    def of(self, mutant: Mutant) -> Verdict | None:
        """The verdict; None where there is none, or where other tests might kill what survived."""
        path = self._path(mutant)
        verdict = Verdict(**json.loads(path.read_text())) if path.is_file() else None
        return verdict if verdict and (verdict.killed or verdict.tests == self.tests) else None

    def keep(self, mutant: Mutant, verdict: Verdict) -> None:
        """Write ``verdict`` down."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(mutant).write_text(json.dumps(asdict(verdict)))

    def _path(self, mutant: Mutant) -> Path:
        name = hashlib.sha256(f"{self._sources} {mutant.module} {mutant.source}".encode()).hexdigest()[:24]
        return self._folder / f"{name}.json"


def _judge_all(mutants: list[Mutant], verdicts: Verdicts, arguments: argparse.Namespace) -> None:
    """Judge ``mutants`` for as many minutes as there are, each worker in a copy of the tree of its own."""
    trees: queue.Queue[Tree] = queue.Queue()
    for number in range(arguments.jobs):
        trees.put(Tree(ROOT, WORK / f"tree{number}"))
    reach = collect(list(trees.queue), WORK, arguments.packages)
    end = time.monotonic() + 60 * arguments.minutes

    def judge_one(mutant: Mutant) -> None:
        if time.monotonic() > end:
            return
        tree = trees.get()
        try:
            verdict = judge(tree, mutant, reach, verdicts.tests)
        finally:
            trees.put(tree)
        verdicts.keep(mutant, verdict)
        print(f"{'killed' if verdict.killed else 'survived':10} {verdict.seconds:6.1f} s  {mutant.where}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(judge_one, mutants))


def _outcome(mutant: Mutant, verdicts: Verdicts) -> Judged | None:
    reason, verdict = reason_of(ROOT, mutant), verdicts.of(mutant)
    if reason:
        return Judged(mutant, "equivalent", reason)
    return Judged(mutant, "killed" if verdict.killed else "survived", verdict.detail) if verdict else None


def _counts(judged: list[Judged]) -> dict[str, int]:
    held = Counter(one.outcome for one in judged)
    return {outcome: held[outcome] for outcome in ("killed", "equivalent", "survived")}


def _packages(judged: list[Judged]) -> dict[str, dict[str, int]]:
    names = dict.fromkeys(one.mutant.package for one in judged)
    return {name: _counts([one for one in judged if one.mutant.package == name]) for name in names}


def _share(judged: list[Judged]) -> float:
    held = _counts(judged)
    return held["killed"] / max(1, held["killed"] + held["survived"])


def _report(judged: list[Judged]) -> None:
    for one in judged:
        if one.outcome == "survived":
            print(f"\n{one.mutant.where}  {one.mutant.operator}: {one.by}\n- {one.mutant.before}\n+ {one.mutant.after}")
    print()
    for name, held in [*_packages(judged).items(), ("all", _counts(judged))]:
        print(f"{name:20}", *(f"{number:4} {outcome}" for outcome, number in held.items()))


def _result(judged: list[Judged], arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from machine import describe

    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(),
        "seed": arguments.seed,
        "per_module": arguments.per_module,
        "mutants": len(judged),
        **_counts(judged),
        "killed_of_not_equivalent": round(_share(judged), 4),
        "packages": _packages(judged),
        "each": [
            {
                "where": one.mutant.where,
                "operator": one.mutant.operator,
                "before": one.mutant.before,
                "after": one.mutant.after,
                "outcome": one.outcome,
                "by": one.by,
            }
            for one in judged
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-module", type=int, default=1, help="places drawn from each module")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES))
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time, each in a copy of the tree")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after these no other mutant is begun")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
