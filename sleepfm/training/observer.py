"""What a run tells of itself while it trains and when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


class Observer:
    """Takes what a run says and does nothing; whoever wants to know of it is a class of this kind in the job's list.

    An error that it raises ends the run.
    """

    def begins(self, step: int) -> None:
        """On every rank, when the work on ``step`` (from 1) begins."""

    def at(self, place: str, patient: bool = False) -> None:
        """On every rank, whenever it goes on to something else; ``patient`` where ranks may wait for the work of one."""

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        """On any rank, whenever it has come further where it is, as ``how_far`` tells; next it may be still for ``still_s``."""

    def report(self, step: int, row: dict[str, Any]) -> None:
        """On rank 0, after every step (``loss``, ``parts``, ``lr`` …) and every validation (keys with a slash)."""

    def ends_early(self, step: int) -> None:
        """On rank 0, before :meth:`validated`, where ``step`` turns out to be the last (``train.patience``)."""

    def validated(
        self, step: int, figures: Mapping[str, float], module: nn.Module, state: Mapping[str, Tensor], best: bool
    ) -> None:
        """On rank 0 while the others wait, after every validation and before its report: ``module``, in eval mode, has the
        weights that were validated, ``state`` holds them on the CPU, and ``best`` says that they are kept as the best so far.
        """

    def exported(self, step: int, figures: Mapping[str, float]) -> None:
        """On rank 0, after the last step ``step``: the final figures (``test/...``) of the best weights."""

    def ended(self, status: str) -> None:
        """On rank 0, with ``FINISHED`` (trained and packaged, not yet registered) or ``KILLED`` (asked to leave early)."""

    def close(self) -> None:
        """On every rank, however the run ended; once."""


class Observers(Observer):
    """Some observers as one: each is told in their order, and closed in the reverse of it."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def begins(self, step: int) -> None:
        for observer in self._observers:
            observer.begins(step)

    def at(self, place: str, patient: bool = False) -> None:
        for observer in self._observers:
            observer.at(place, patient)

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        for observer in self._observers:
            observer.goes_on(how_far, still_s)

    def report(self, step: int, row: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.report(step, row)

    def ends_early(self, step: int) -> None:
        for observer in self._observers:
            observer.ends_early(step)

    def validated(
        self, step: int, figures: Mapping[str, float], module: nn.Module, state: Mapping[str, Tensor], best: bool
    ) -> None:
        for observer in self._observers:
            observer.validated(step, figures, module, state, best)

    def exported(self, step: int, figures: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.exported(step, figures)

    def ended(self, status: str) -> None:
        for observer in self._observers:
            observer.ended(status)

    def close(self) -> None:
        """Close every one, also where another raises; a second call does nothing."""
        closing, self._observers = self._observers, ()
        with ExitStack() as stack:
            for observer in closing:
                stack.callback(observer.close)
