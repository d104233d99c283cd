"""What is counted of a night's breathing: events where a model tells seconds apart, else runs of positive epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.evaluation.events import AHI_DEFINITION, RUNS_DEFINITION, ahi, event_family, index_per_hour, overlapping
from sleepfm.signals.scorings.scoring import Event

KINDS = ("apnea", "hypopnea")


@dataclass(frozen=True)
class Counted:
    """Apneas or hypopneas of one night, or what a model of epochs gives in their place.

    Attributes:
        kind: ``apnea`` or ``hypopnea``.
        located: whether these are events; else they are runs of positive epochs.
        found: how many, awake or asleep.
        asleep: how many overlap an epoch staged as sleep in which ``kind`` was scored; None where no epoch was staged.
        per_hour: ``asleep`` per hour of such epochs; nan without one.
    """

    kind: str
    located: bool
    found: int
    asleep: int | None
    per_hour: float

    @property
    def name(self) -> str:
        """``apnea``, or ``apnea, positive runs``."""
        return self.kind if self.located else f"{self.kind}, positive runs"


@dataclass(frozen=True)
class Breathing:
    """Every respiratory figure of a night. Whatever was not scored is not in ``counted``, and its figures are None.

    ``ahi`` is nan unless both kinds were told to the second and some epoch is sleep; ``hours`` are those of sleep in which every
    kind of ``counted`` was scored, nan where no epoch was staged.
    """

    counted: tuple[Counted, ...]
    ahi: float
    hours: float

    def of(self, kind: str, located: bool = True) -> Counted | None:
        """What was counted of ``kind``, as events or (not ``located``) as runs; None where it was not."""
        return next((row for row in self.counted if (row.kind, row.located) == (kind, located)), None)

    @property
    def definitions(self) -> tuple[str, ...]:
        """How the figures that there are came about, one sentence each."""
        found = (f"AHI: {AHI_DEFINITION}",) if all(self.of(kind) for kind in KINDS) else ()
        runs = any(not row.located for row in self.counted)
        return (*found, f"Positive runs: {RUNS_DEFINITION}") if runs else found

    def to_json(self) -> dict[str, Any]:
        """Plain types; None for what was not scored."""
        content: dict[str, Any] = {"ahi": self.ahi, "definitions": list(self.definitions), "hours_of_scored_sleep": self.hours}
        for kind, plural in zip(KINDS, ("apneas", "hypopneas"), strict=True):
            events, runs = self.of(kind), self.of(kind, located=False)
            content |= {
                plural: events and events.found,
                f"{plural}_in_sleep": events and events.asleep,
                f"{kind}_index": events and events.per_hour,
                f"{kind}_positive_runs": runs and runs.found,
                f"{kind}_positive_runs_in_sleep": runs and runs.asleep,
                f"{kind}_positive_runs_per_hour": runs and runs.per_hour,
            }
        return content

    def __str__(self) -> str:
        """One line: the AHI where it is defined, else what was counted."""
        if all(self.of(kind) for kind in KINDS):
            return f"AHI {_number(self.ahi)}"
        named = ((row.per_hour, f"{row.kind}s" if row.located else f"positive runs of {row.kind}") for row in self.counted)
        return ", ".join(f"{_number(per_hour)} {name} per hour of sleep" for per_hour, name in named)


def count_breathing(
    stages: ArrayLike,
    events: Sequence[Event],
    runs: Sequence[Event],
    scored: Mapping[str, ArrayLike],
    located: Sequence[str],
) -> Breathing:
    """Count a night's ``events`` and ``runs``.

    Args:
        stages: [E], -1 where unscored.
        events: of the kinds in ``located``; ``runs``: of the others.
        scored: kind to [E], true where the epoch was scored for it; only kinds that were scored at all.
        located: kinds that were told to the second, whether or not they were assessed in this night.
    """
    stage = np.asarray(stages)
    staged, asleep = bool((stage >= 0).any()), stage > Stage.W
    counted = []
    for kind in (kind for kind in KINDS if kind in scored):
        mine = [e for e in (events if kind in located else runs) if event_family(e.type) == kind]
        sleep = asleep & np.asarray(scored[kind], dtype=bool)
        in_sleep = len(overlapping(mine, sleep)) if staged else None
        counted.append(Counted(kind, kind in located, len(mine), in_sleep, index_per_hour(mine, sleep)))
    every: NDArray[np.bool_] = asleep.copy()
    for kind in (kind for kind in KINDS if kind in scored):
        every &= np.asarray(scored[kind], dtype=bool)
    both = set(KINDS) <= set(located) & set(scored)
    hours = float(every.sum() * EPOCH_SECONDS / 3600) if staged and counted else math.nan
    return Breathing(tuple(counted), ahi(events, every) if both else math.nan, hours)


@dataclass(frozen=True)
class IndexOfPart:
    """Events of a part of the night: ``found`` in ``hours`` of it, ``per_hour`` of them (nan in no time)."""

    name: str
    found: int
    hours: float
    per_hour: float


def index_by_part(events: Sequence[Event], part: ArrayLike, names: Sequence[str]) -> tuple[IndexOfPart, ...]:
    """Index of ``events`` in each part of the night, such as its stages or positions.

    Args:
        part: [E], number of the part that an epoch is of in ``names``; -1 where it is of none, as outside of scored sleep.

    An event belongs to the part of the epoch that most of it lies in (of equals the first), so that the parts' events add up to
    those of :func:`sleepfm.evaluation.events.index_per_hour` over all of them.
    """
    parts = np.asarray(part)
    found = np.zeros(len(names), int)
    for event in overlapping(events, parts >= 0):
        first = max(0, math.floor(event.onset / EPOCH_SECONDS))
        stop = max(first + 1, math.ceil((event.onset + event.duration) / EPOCH_SECONDS))
        edges = np.arange(first, stop + 1) * float(EPOCH_SECONDS)
        shared = np.minimum(edges[1:], event.onset + event.duration) - np.maximum(edges[:-1], event.onset)
        there = parts[first:stop]
        shared = np.where(there >= 0, shared[: len(there)], -1.0)
        found[there[int(shared.argmax())]] += 1
    hours = np.bincount(parts[parts >= 0], minlength=len(names)) * EPOCH_SECONDS / 3600
    return tuple(
        IndexOfPart(name, int(count), float(time), float(count / time) if time else math.nan)
        for name, count, time in zip(names, found, hours, strict=True)
    )


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:z.1f}"
