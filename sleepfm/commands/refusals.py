"""The recordings that a call refuses: each told at once, and at the end how many for which reason."""

from __future__ import annotations

from sleepfm.console import refuse
from sleepfm.signals.refusals import ReasonCounts


class Refusals:
    """Tells of refused recordings; ``reasons`` has that of each by its file."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, file: str, reason: str) -> None:
        """Tell that the recording ``file`` is refused, and why."""
        refuse(reason)
        self.reasons[file] = reason

    @property
    def count(self) -> int:
        """How many."""
        return len(self.reasons)

    def summary(self, done: str) -> list[str]:
        """``done``, which says what became of the others, how many were refused, and a line for each reason."""
        counts = ReasonCounts()
        for file, reason in self.reasons.items():
            counts.add(reason.removeprefix(f"{file}: "))
        lines = [f"  {line}" for line in counts.lines()]
        return [f"{done}, {self.count} refused{':' if lines else ''}", *lines]
