"""Which hypopneas count, and the AHI by each of the definitions in use, from one scoring.

A hypopnea is scored by the fall of its airflow. Whether it counts depends on what follows it (AASM manual for the scoring of
sleep, chapter VIII.D): by rule 1A a desaturation of 3 % or more or an arousal, by rule 1B (that of Medicare) a desaturation of
4 % or more. An apnea counts by every rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.evaluation.desaturations import Desaturation
from sleepfm.evaluation.events import event_family, index_per_hour, join_overlapping
from sleepfm.signals.scorings.scoring import Event

# The blood of an event reaches the finger 10 to 30 s later: its desaturation begins up to so many seconds after its end, and is
# lowest no earlier than so many after its onset. (Where it begins is less sure: oximeters tell whole per cents.)
SATURATION_LAG = 30
SOONEST_NADIR = 15
# An arousal that ends an event begins up to so many seconds after it.
AROUSAL_LAG = 5
# Share of the seconds in which SpO2 must be scored for the lack of a desaturation to be known.
SCORED_SHARE = 0.9

DEFINITIONS = {
    "ahi_3_percent": "apneas, and hypopneas with a desaturation of 3 % or more",
    "ahi_3_percent_or_arousal": "apneas, and hypopneas with a desaturation of 3 % or more or an arousal (AASM 1A)",
    "ahi_4_percent": "apneas, and hypopneas with a desaturation of 4 % or more (AASM 1B)",
}
COMMON = (
    "; per hour of the epochs staged as sleep in which all that the definition asks for was scored. A desaturation belongs to "
    f"the last event that began {SOONEST_NADIR} s or more before its nadir, if it began within {SATURATION_LAG} s of that "
    f"event's end; an arousal to an event that ended up to {AROUSAL_LAG} s before it. A hypopnea of which this is not known "
    "takes its epochs out of the hours"
)


@dataclass(frozen=True)
class Evidence:
    """What followed an event.

    Attributes:
        depth: % of its desaturation, 0 without one, None where SpO2 was not scored.
        arousal: whether an arousal ended it, None where arousals were not scored.
    """

    depth: float | None
    arousal: bool | None

    def meets(self, definition: str) -> bool | None:
        """Whether a hypopnea with this counts by ``definition``, a key of :data:`DEFINITIONS`; None where that is not known."""
        asked = 4.0 if definition == "ahi_4_percent" else 3.0
        falls = None if self.depth is None else self.depth >= asked
        if definition != "ahi_3_percent_or_arousal":
            return falls
        if falls or self.arousal:
            return True
        return None if falls is None or self.arousal is None else False


def find_evidence(
    events: Sequence[Event],
    saturation: ArrayLike | None,
    desaturations: Sequence[Desaturation],
    arousals: Sequence[Event] | None,
    arousals_scored: ArrayLike | None = None,
) -> tuple[Evidence, ...]:
    """What followed each of ``events``, apneas and hypopneas by onset.

    Args:
        saturation: SpO2 [30 E] of every second, nan where unscored; None without oximetry.
        desaturations: those found in it.
        arousals: None where they were not scored.
        arousals_scored: [E], epochs in which they were; all by default.
    """
    depths: dict[int, float] = {}
    for fall in desaturations:
        owners = [
            number
            for number, event in enumerate(events)
            if event.onset + SOONEST_NADIR <= fall.end and fall.onset <= event.onset + event.duration + SATURATION_LAG
        ]
        if owners:
            depths[owners[-1]] = max(depths.get(owners[-1], 0.0), fall.depth)
    values = None if saturation is None else np.asarray(saturation, dtype=float)
    where = None if arousals_scored is None else np.asarray(arousals_scored, dtype=bool)
    return tuple(
        Evidence(
            depths[n] if n in depths else _no_fall(event, values),
            None if arousals is None else _ended(event, arousals, where),
        )
        for n, event in enumerate(events)
    )


def _no_fall(event: Event, saturation: NDArray[np.float64] | None) -> float | None:
    """0 where SpO2 of an event without desaturation was scored, else None."""
    if saturation is None:
        return None
    seconds = saturation[int(event.onset) : math.ceil(event.onset + event.duration + SATURATION_LAG)]
    return 0.0 if len(seconds) and np.isfinite(seconds).mean() >= SCORED_SHARE else None


def _ended(event: Event, arousals: Sequence[Event], scored: NDArray[np.bool_] | None) -> bool | None:
    end = event.onset + event.duration
    if any(event.onset < arousal.onset <= end + AROUSAL_LAG for arousal in arousals):
        return True
    epoch = int(end // EPOCH_SECONDS)
    return None if scored is not None and not (epoch < len(scored) and scored[epoch]) else False


def ahi_by_definition(
    events: Sequence[Event],
    evidence: Mapping[Event, Evidence],
    asleep: ArrayLike,
    saturation_scored: ArrayLike | None,
    arousals_scored: ArrayLike | None,
) -> dict[str, float]:
    """Index of every definition, nan where what it asks for was never scored.

    Args:
        events: apneas and hypopneas of the whole night, of which no two overlap; ``evidence`` of each.
        asleep: [E], epochs of sleep in which apneas and hypopneas were scored.
        saturation_scored, arousals_scored: [E], epochs in which SpO2 and arousals were; None for nowhere.
    """
    parts = _by_definition(events, evidence, asleep, saturation_scored, arousals_scored)
    return {definition: index_per_hour(counted, epochs) for definition, counted, epochs in parts}


def hours_by_definition(
    events: Sequence[Event],
    evidence: Mapping[Event, Evidence],
    asleep: ArrayLike,
    saturation_scored: ArrayLike | None,
    arousals_scored: ArrayLike | None,
) -> dict[str, float]:
    """The hours that each index of :func:`ahi_by_definition` is of. They differ, so one can be above one that counts more."""
    parts = _by_definition(events, evidence, asleep, saturation_scored, arousals_scored)
    return {definition: float(epochs.sum() * EPOCH_SECONDS / 3600) for definition, _, epochs in parts}


def _by_definition(
    events: Sequence[Event],
    evidence: Mapping[Event, Evidence],
    asleep: ArrayLike,
    saturation_scored: ArrayLike | None,
    arousals_scored: ArrayLike | None,
) -> Iterator[tuple[str, list[Event], NDArray[np.bool_]]]:
    """Each definition with the events that count by it, and the epochs [E] in which all that it asks for was scored."""
    sleep = np.asarray(asleep, dtype=bool)
    nowhere = np.zeros(len(sleep), dtype=bool)
    oxygen = nowhere if saturation_scored is None else np.asarray(saturation_scored, dtype=bool)
    waking = nowhere if arousals_scored is None else np.asarray(arousals_scored, dtype=bool)
    for definition in DEFINITIONS:
        epochs = sleep & oxygen & (waking if definition == "ahi_3_percent_or_arousal" else True)
        counted = []
        for event in events:
            met = True if event_family(event.type) == "apnea" else evidence[event].meets(definition)
            if met is None:
                first = int(event.onset // EPOCH_SECONDS)
                epochs[first : math.ceil((event.onset + event.duration) / EPOCH_SECONDS)] = False
            elif met:
                counted.append(event)
        yield definition, counted, epochs


def breathing_events(events: Sequence[Event]) -> tuple[Event, ...]:
    """Apneas and hypopneas of ``events`` by onset, those that overlap joined."""
    return tuple(e for e in join_overlapping(events) if event_family(e.type) in ("apnea", "hypopnea"))
