"""Scored events: apneas and hypopneas in sleep, the arousals that end them, and spontaneous ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.synthetic.noise import drift
from sleepfm.synthetic.statistics import statistics
from sleepfm.synthetic.subject import Subject

# Body position as SHHS codes it.
RIGHT, LEFT, BACK, FRONT = range(4)
POSITION_PROBABILITY = (0.25, 0.25, 0.42, 0.08)
POSITION_MINUTES = 35.0
CLUSTER_SECONDS = 600.0
CLUSTER_LOG_SD = 0.6
# Share of a severe subject's time that dead time between events may take before the rate saturates.
BUSIEST = 0.75
AROUSAL_SECONDS = (6.0, 0.45, 3.0, 15.0)
AROUSAL_DISTANCE = 15.0


@dataclass(frozen=True)
class Event:
    """One scored event.

    Attributes:
        kind: one of :data:`sleepfm.constants.EVENT_TYPES`.
        onset, duration: seconds from the first sample.
        reduction: respiratory events: share of airflow lost.
        central: respiratory events: share of the event, from its onset, without effort.
        baseline, nadir: desaturations: SpO2 in %.
    """

    kind: str
    onset: float
    duration: float
    reduction: float = 0.0
    central: float = 0.0
    baseline: float = 0.0
    nadir: float = 0.0

    @property
    def end(self) -> float:
        """Seconds from the first sample."""
        return self.onset + self.duration


def is_respiratory(event: Event) -> bool:
    """Whether airflow falls: apneas and hypopneas."""
    return event.kind in APNEA_TYPES or event.kind == "hypopnea"


def draw_position(subject: Subject, seconds: int) -> NDArray[np.int8]:
    """Body position each second [seconds]."""
    rng = subject.rng("position")
    position = np.empty(seconds, dtype=np.int8)
    start = 0
    while start < seconds:
        stop = start + 60 + int(rng.exponential(60.0 * POSITION_MINUTES))
        position[start:stop] = rng.choice(len(POSITION_PROBABILITY), p=POSITION_PROBABILITY)
        start = stop
    return position


def draw_respiratory_events(subject: Subject, stages: NDArray[np.int8], position: NDArray[np.int8]) -> list[Event]:
    """Apneas and hypopneas that begin and end in sleep, in order; rates by stage are slpdb's, the level the
    subject's."""
    rng = subject.rng("events")
    chosen, fitted = statistics().chosen, statistics().respiration
    asleep = np.repeat(stages > Stage.W, EPOCH_SECONDS)
    by_stage = np.array([fitted.rate_per_hour[name] for name in STAGE_NAMES])
    hazard = np.repeat(by_stage[stages], EPOCH_SECONDS) * asleep
    hazard *= np.where(position == BACK, chosen.supine_factor, 1.0)
    hazard *= np.exp(CLUSTER_LOG_SD * drift(rng, len(hazard), CLUSTER_SECONDS))
    hazard *= subject.index / 3600.0 / max(float(hazard[asleep].mean()) if asleep.any() else 1.0, 1e-9)
    busy = chosen.duration_seconds.median + chosen.recovery_seconds
    hazard /= 1.0 - np.minimum(hazard * busy, BUSIEST)
    cumulative = np.concatenate([[0.0], np.cumsum(hazard)])

    events: list[Event] = []
    time = 0.0
    while True:
        reached = float(np.interp(time, np.arange(len(cumulative)), cumulative)) + rng.exponential()
        if reached >= cumulative[-1]:
            return events
        onset = round(float(np.interp(reached, cumulative, np.arange(len(cumulative)))), 1)
        event = _draw_event(subject, rng, onset, stages)
        last = int(np.ceil(event.end)) + 2
        if last < len(asleep) and asleep[int(onset) : last].all():
            events.append(event)
            time = event.end + chosen.recovery_seconds
        else:
            time = onset + 1.0


def _draw_event(subject: Subject, rng: np.random.Generator, onset: float, stages: NDArray[np.int8]) -> Event:
    chosen = statistics().chosen
    limits = chosen.duration_seconds
    rem = stages[min(int(onset) // EPOCH_SECONDS, len(stages) - 1)] == Stage.REM
    median = limits.median * (1.2 if rem else 1.0)
    duration = float(np.clip(median * np.exp(limits.log_sd * rng.standard_normal()), limits.lowest, limits.highest))
    if rng.random() >= subject.apnea_share:
        kind, reduction, central = "hypopnea", float(rng.uniform(0.4, 0.75)), 0.0
    else:
        reduction = 1.0
        choice = rng.random()
        if choice < subject.mixed_share:
            kind, central = "mixed_apnea", float(rng.uniform(0.35, 0.6))
            duration = max(duration, 14.0)
        elif rng.random() < subject.central_share:
            kind, central = "central_apnea", 1.0
        else:
            kind, central = "obstructive_apnea", 0.0
    return Event(kind, onset, round(duration, 1), reduction=reduction, central=central)


def draw_arousals(
    subject: Subject, stages: NDArray[np.int8], events: Sequence[Event], desaturations: Sequence[Event]
) -> list[Event]:
    """Arousals at the end of respiratory ``events``, as often as in slpdb, and spontaneous ones away from them, in order.

    A hypopnea without one of the ``desaturations`` always ends in an arousal: without either it is none (AASM rule 1A).
    """
    rng = subject.rng("arousals")
    fitted = statistics().respiration
    probability = {
        **fitted.arousal_probability,
        "mixed_apnea": fitted.arousal_probability["obstructive_apnea"],
    }
    nadirs = np.array([event.end for event in desaturations])
    arousals = []
    for event in events:
        lowest = np.any((nadirs > event.onset) & (nadirs <= event.end + subject.delay + 25.0))
        if rng.random() < probability[event.kind] or (event.kind == "hypopnea" and not lowest):
            arousals.append(_arousal(rng, event.end - rng.uniform(0.0, 1.5)))
    seconds = len(stages) * EPOCH_SECONDS
    count = rng.poisson(subject.arousals_per_hour * seconds / 3600.0)
    taken = [(event.onset - AROUSAL_DISTANCE, event.end + AROUSAL_DISTANCE) for event in events]
    for onset in np.sort(rng.uniform(0.0, seconds - 20.0, count)).tolist():
        stage = stages[int(onset) // EPOCH_SECONDS]
        rare = stage == Stage.N3 and rng.random() < 0.6
        if stage == Stage.W or rare or any(start < onset < end for start, end in taken):
            continue
        arousals.append(_arousal(rng, onset))
        taken.append((onset - AROUSAL_DISTANCE, arousals[-1].end + AROUSAL_DISTANCE))
    return sorted(arousals, key=lambda event: event.onset)


def _arousal(rng: np.random.Generator, onset: float) -> Event:
    median, log_sd, lowest, highest = AROUSAL_SECONDS
    duration = float(np.clip(median * np.exp(log_sd * rng.standard_normal()), lowest, highest))
    return Event("arousal", round(onset, 1), round(duration, 1))
