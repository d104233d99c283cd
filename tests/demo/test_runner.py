"""A step that may refuse inputs is not one that may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sleepfm.demo.runner import Journal, Runner, Step
from sleepfm.errors import TrainingError


def step(line: str, status: int) -> Step:
    return Step("shards", [sys.executable, "-c", f"print({line!r}); raise SystemExit({status})"], refusals_ok=True)


def test_refused_inputs_are_accepted_and_errors_are_not(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "demo", "same")
    runner = Runner(tmp_path / "demo", journal, lambda: 3)
    for failed in (step("error: Ray did not start", 1), step("killed", 2)):
        with pytest.raises(TrainingError, match="shards ended with status"):
            runner.run(failed)
        assert "shards" not in journal.steps
    runner.run(step("1 recordings refused", 1))
    assert "shards" in journal.steps
