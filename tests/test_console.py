"""What is printed on terminals and elsewhere."""

from __future__ import annotations

import io

import pytest

from shards import progress
from shards.task import Outcome
from sleepfm import console
from sleepfm.console import RED, coloured, exit_with, refuse, warn, with_progress
from sleepfm.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("error:", RED, Terminal()) == "\033[31merror:\033[0m"
    assert coloured("error:", RED, io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("error:", RED, Terminal()) == "error:"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("error:", RED, Terminal()) == "error:"


def test_lines_of_a_pipe_hold_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UsageError("no such thing")

    warn("old")
    refuse("a.edf: empty")
    assert exit_with(fail) == 2
    assert capsys.readouterr().err == "warning: old\nrefused: a.edf: empty\nerror: no such thing\n"


def test_a_build_repeats_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    told = progress.Progress(shards=2, recordings=8)
    for now in range(1, 60):  # noqa: B007 (the clock reads it)
        told.update(None)
    assert capsys.readouterr().out == ""
    told.update(Outcome("a.tar", 4, 32.0, 10.0, ()))
    first = capsys.readouterr().out
    assert first.startswith("shards 1/2  recordings 4/8")
    for now in range(60, 200):  # noqa: B007
        told.update(None)
    silent = capsys.readouterr().out.splitlines()
    assert silent == [f"working: no shard finished for {clock}, 1 are left" for clock in ("1:00", "2:00")]
    told.update(Outcome("b.tar", 4, 32.0, 10.0, ()))
    assert capsys.readouterr().out.startswith("shards 2/2  recordings 8/8")


def test_a_listing_repeats_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    told = progress.ListingProgress("s3://bucket")
    for now, files in enumerate((1, 1, 1, 5, 5, 5, 5, 5, 5, 5)):  # noqa: B007
        told.update("found", files)
    assert capsys.readouterr().out.splitlines() == ["s3://bucket: 5 recordings found"]


def test_outside_a_terminal_progress_is_lines_that_do_not_repeat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    for item in with_progress("abcdefgh", 8, "synth", "night"):
        now += 2.5 if item < "f" else 0.1
    assert capsys.readouterr().err == "synth: 5 of 8 nights\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(with_progress("ab", 2, "synth", "night")) == ["a", "b"]
    assert "\rsynth: 100%" in terminal.getvalue()
