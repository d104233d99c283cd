"""Who is told of a run: a list, of which every one is told in turn, and closed however the run ended."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sleepfm.training.observer import Observer, Observers


class Tracker(Observer):
    """Notes what it is told; ``fails`` names the call that it raises in."""

    def __init__(self, name: str, told: list[tuple[Any, ...]], fails: str = "") -> None:
        self.name, self.told, self.fails = name, told, fails

    def _note(self, call: str, *values: Any) -> None:
        self.told.append((self.name, call, *values))
        if call == self.fails:
            raise RuntimeError(f"{self.name}: {call}")

    def at(self, place: str, patient: bool = False) -> None:
        self._note("at", place, patient)

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        self._note("goes_on", how_far, still_s)

    def report(self, step: int, row: dict[str, Any]) -> None:
        self._note("report", step, row)

    def validated(self, step: int, figures: Any, module: nn.Module, state: Any, best: bool) -> None:
        self._note("validated", step, figures, best)

    def ends_early(self, step: int) -> None:
        self._note("ends_early", step)

    def exported(self, step: int, figures: Any) -> None:
        self._note("exported", step, figures)

    def ended(self, status: str) -> None:
        self._note("ended", status)

    def close(self) -> None:
        self._note("close")


def test_each_observer_is_told_everything_in_order_and_closed_in_reverse() -> None:
    told: list[tuple[Any, ...]] = []
    observers = Observers([Tracker("a", told), Tracker("b", told)])
    observers.at("waiting", patient=True)
    observers.goes_on("3 of 4", 60.0)
    observers.report(1, {"loss": 2.0})
    observers.ends_early(1)
    observers.validated(1, {"val/loss": 1.0}, nn.Identity(), {}, True)
    observers.exported(1, {"test/kappa": 0.5})
    observers.ended("FINISHED")
    calls = [
        ("at", "waiting", True),
        ("goes_on", "3 of 4", 60.0),
        ("report", 1, {"loss": 2.0}),
        ("ends_early", 1),
        ("validated", 1, {"val/loss": 1.0}, True),
        ("exported", 1, {"test/kappa": 0.5}),
        ("ended", "FINISHED"),
    ]
    assert told == [(name, *call) for call in calls for name in ("a", "b")]
    del told[:]
    observers.close()
    observers.close()
    assert told == [("b", "close"), ("a", "close")]


def test_an_error_of_an_observer_reaches_the_run_and_leaves_none_open() -> None:
    told: list[tuple[Any, ...]] = []
    observers = Observers([Tracker("a", told, "report"), Tracker("b", told, "close")])
    with pytest.raises(RuntimeError, match="a: report"):
        observers.report(1, {})
    assert told == [("a", "report", 1, {})]
    with pytest.raises(RuntimeError, match="b: close"):
        observers.close()
    assert told[1:] == [("b", "close"), ("a", "close")]
