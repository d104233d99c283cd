"""A step that may refuse inputs is not one that may fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sleepfm.demo import runner as running
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
    runner.run(step("1 recording refused", 1))
    assert "shards" in journal.steps


LINES = ["step 1", "stage: registered as sleepfm-stage:2 (champion) " + "x" * 300]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_whole_and_printed_once(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # So that every line is relayed while the step runs, the last one too.
    monkeypatch.setattr(running, "RELAY_SECONDS", -1.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(running.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    runner = Runner(tmp_path / "demo", Journal.open(tmp_path / "demo", "same"), lambda: 1)
    runner.run(Step("probe", [sys.executable, "-c", f"print({LINES[0]!r}); print({LINES[1]!r})"]))
    title, *relayed, cost = capsys.readouterr().out.splitlines()
    assert title == "[ 1/1] probe" and "peak memory" in cost
    assert relayed == [f"        {line}"[: 80 if terminal else None] for line in LINES]


def test_the_last_line_of_a_short_step_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(tmp_path / "demo", Journal.open(tmp_path / "demo", "same"), lambda: 1)
    runner.run(Step("probe", [sys.executable, "-c", f"print({LINES[1]!r})"]))
    assert capsys.readouterr().out.splitlines()[1] == f"        {LINES[1]}"
