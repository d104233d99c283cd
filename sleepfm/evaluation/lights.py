"""Lights off and lights on: the time in bed that a night's figures count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sleepfm.constants import EPOCH_SECONDS

# Where a time comes from, in words.
BY_OPTION, BY_ANNOTATION = "stated by option", "annotated in the recording or its scoring"
BY_RULE = "by rule, since nobody stated them: time in bed runs from the first scored epoch to the last"


@dataclass(frozen=True)
class Lights:
    """Seconds from the recording's first sample, None where only the rule gives a time, and where each comes from."""

    off: float | None = None
    on: float | None = None
    off_from: str = BY_RULE
    on_from: str = BY_RULE

    def bounds(self, n_epochs: int) -> tuple[int | None, int | None]:
        """First epoch in bed and the one after the last, of ``n_epochs``, by their larger part; None by rule."""
        off, on = (None if time is None else min(max(round(time / EPOCH_SECONDS), 0), n_epochs) for time in (self.off, self.on))
        return off, on

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"off_s": self.off, "off_from": self.off_from, "on_s": self.on, "on_from": self.on_from}
