"""Hostile input: read or refused with a typed reason, in bounded time and memory, without a write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzzing.py")


def fuzz(folder: Path, seed: int, first: int, last: int) -> dict:
    folder.mkdir()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(PROGRAM.parents[2]), str(PROGRAM.parents[1]), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(seed), str(first), str(last)],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"died of {done.returncode}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["failures"], "\n".join(report["failures"][:20])
    assert report["cases"] == last - first
    assert sorted(path.name for path in folder.iterdir()) == ["cases"] and not any((folder / "cases").iterdir())
    return report


def test_some_hostile_cases(tmp_path):
    report = fuzz(tmp_path / "fuzz", 1, 0, 100)
    assert any(outcome.endswith(": read") for outcome in report["outcomes"])
    assert any("Error" in outcome for outcome in report["outcomes"])


@pytest.mark.slow
def test_thousands_of_hostile_cases(tmp_path):
    for part in range(6):
        report = fuzz(tmp_path / f"fuzz-{part}", 2, 1000 * part, 1000 * (part + 1))
        print(json.dumps(report))
