"""What a scoring file says, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

# What a scoring is worth to whoever reads a recording: it must be there and usable, is used where it can be, or is not read.
ScoringUse = Literal["require", "if_valid", "ignore"]
# Where a format keeps texts of one nature apart.
Group = Literal["", "respiratory", "stage"]


@dataclass(frozen=True)
class Row:
    """A text from ``onset`` s for ``duration`` s, None where the file gives no end; ``group`` is what the file says it is."""

    onset: float
    duration: float | None
    text: str
    group: Group = ""


@dataclass(frozen=True)
class StageInterval:
    """One stage (:class:`sleepfm.constants.Stage`) from ``onset`` s, for ``duration`` s."""

    onset: float
    duration: float
    stage: int

    @property
    def end(self) -> float:
        return self.onset + self.duration


@dataclass(frozen=True)
class Event:
    """An event of ``type`` (:data:`sleepfm.constants.EVENT_TYPES`) from ``onset`` s, for ``duration`` s."""

    onset: float
    duration: float
    type: str


@dataclass(frozen=True)
class Scoring:
    """Stages and events of one night, in seconds from its first sample, sorted by onset.

    Attributes:
        source: format and file name.
        has_events: whether events were scored at all; without it, no event means nothing.
        whole_night: the format gives every epoch a code, so a scoring shorter than the recording is an error.
        unclear: what may be apneas and hypopneas, with the text as type: its text is not understood, or its times are not
            known; nobody may call what they cover free of these.
        untimed: the same of arousals and desaturations, with their types, over what they may touch.
        ignored: texts without any effect, with how often they occur; "..." stands for all but the most frequent.
        others: these, as events whose type is their text; a cohort's rules may know more of them.
        warnings: what was repaired or cut.
        seconds_assumed: nothing in the file says that its epochs have 30 s, or its times are seconds.
        misplaced: those of ``warnings`` by which it may be of another night: its recording started at another time of day.
        clock: time of day in s at which the recording started, by the file; None where it does not say.
        unreliable: types of events of which this scoring is documented to say nothing that holds; none of them is in ``events``.
    """

    stages: tuple[StageInterval, ...]
    events: tuple[Event, ...]
    source: str
    has_events: bool
    whole_night: bool = False
    unclear: tuple[Event, ...] = ()
    untimed: tuple[Event, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    others: tuple[Event, ...] = ()
    warnings: tuple[str, ...] = ()
    unreliable: tuple[str, ...] = ()
    seconds_assumed: bool = False
    misplaced: tuple[str, ...] = ()
    clock: float | None = None

    def with_misplaced(self, told: str) -> Scoring:
        """This, with ``told`` among what speaks for another night."""
        return replace(self, warnings=(*self.warnings, told), misplaced=(*self.misplaced, told))

    @property
    def begin(self) -> float:
        """Onset of the first stage in s."""
        return self.stages[0].onset

    @property
    def end(self) -> float:
        """End of the last stage in s."""
        return max(interval.end for interval in self.stages)
