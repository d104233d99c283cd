"""Damaged and hostile input through the whole conversion: refused with a reason, or converted; nothing else happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_build.py")


@pytest.mark.parametrize(("seed", "cases"), [(5, 40), *(pytest.param(seed, 600, marks=pytest.mark.slow) for seed in range(5))])
def test_mutated_recordings_and_scorings(cohort, tmp_path, seed, cases, shards_environment):
    edf = min(cohort.rglob("*.edf"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(edf), str(tmp_path / "fuzz"), str(seed), str(cases)],
        capture_output=True,
        text=True,
        env=shards_environment(None),
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["faults"] == [] and summary["violations"] == [] and summary["left"] == []
    assert sum(summary["results"].values()) == cases
    assert {"converted", "RecordingError", "unscored"} <= summary["results"].keys()
    assert summary["peak_mb"] < 400
