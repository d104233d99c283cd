"""Respiratory events, their index per hour of sleep, and agreement with scored events.

A model with an event head tells seconds apart, and its events have an onset and a duration. A model of epochs says whether an
epoch holds an event, not where: what it gives are runs of consecutive positive epochs. Two events in neighbouring epochs are one
run, so that runs are counted as runs and never as events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS
from sleepfm.signals.scorings.scoring import Event

AHI_DEFINITION = (
    "apneas and hypopneas that overlap an epoch staged as sleep, per hour of the epochs staged as sleep in which both were "
    "scored; a hypopnea that overlaps an apnea is part of that apnea; an event is told to the second and lasts at least 10 s; "
    "a hypopnea needs neither desaturation nor arousal"
)
RUNS_DEFINITION = (
    "runs of consecutive 30-s epochs that the model calls positive and that overlap an epoch staged as sleep, per hour of the "
    "epochs staged as sleep that were scored; a run is no event, since neighbouring events are one run, and these figures are "
    "no AHI"
)
RESPIRATORY_TYPES = (*APNEA_TYPES, "apnea", "hypopnea")
# An apnea or hypopnea lasts at least 10 s, an arousal 3 s (AASM manual 2.6); a shorter pause inside one does not end it.
MIN_SECONDS = 10
MIN_AROUSAL_SECONDS = 3
BRIDGED_SECONDS = 3


def event_family(kind: str) -> str:
    """``apnea`` for every kind of apnea, else the type itself."""
    return "apnea" if kind.endswith("apnea") else kind


def runs(flags: ArrayLike) -> list[tuple[int, int]]:
    """First index and one past the last of every run of true values in ``flags`` [N]."""
    padded = np.concatenate([[0], np.asarray(flags, dtype=bool).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(padded)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def runs_of_epochs(positive: ArrayLike, kind: str) -> tuple[Event, ...]:
    """The runs of true values in ``positive`` [E] as spans of seconds that carry the name ``kind``."""
    return tuple(Event(float(start * EPOCH_SECONDS), float((end - start) * EPOCH_SECONDS), kind) for start, end in runs(positive))


def positive_runs(probability: ArrayLike, threshold: float, kind: str) -> tuple[Event, ...]:
    """Runs of epochs whose ``probability`` [E] of ``kind`` reaches ``threshold``; nan never does."""
    return runs_of_epochs(np.asarray(probability, dtype=float) >= threshold, kind)


def events_from_seconds(probability: ArrayLike, threshold: float, kind: str) -> tuple[Event, ...]:
    """Events of type ``kind`` where ``probability`` [30 E] reaches ``threshold``, nan never does: runs with pauses of up to
    ``BRIDGED_SECONDS`` in one, those of at least ``MIN_SECONDS`` (arousals: ``MIN_AROUSAL_SECONDS``).
    """
    shortest = MIN_AROUSAL_SECONDS if kind == "arousal" else MIN_SECONDS
    joined: list[tuple[int, int]] = []
    for start, end in runs(np.asarray(probability, dtype=float) >= threshold):
        if joined and start - joined[-1][1] <= BRIDGED_SECONDS:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(Event(float(start), float(end - start), kind) for start, end in joined if end - start >= shortest)


def find_events(probability: ArrayLike, threshold: float, kind: str, located: bool) -> tuple[Event, ...]:
    """What a model finds of ``kind``: events in the ``probability`` of seconds [30 E] if ``located``, else runs of positive
    epochs in that of epochs [E].
    """
    return (events_from_seconds if located else positive_runs)(probability, threshold, kind)


def join_overlapping(events: Sequence[Event]) -> tuple[Event, ...]:
    """Events by onset, of which no hypopnea overlaps an apnea: such a hypopnea is part of the apnea that it overlaps most.

    An event of which a portion meets the criteria of an apnea is an apnea as a whole (AASM manual, notes to the apnea rule): it
    lasts from the first onset to the last end of both, though not into another apnea or hypopnea. Other events stay as they are.
    """
    apneas = [e for e in events if event_family(e.type) == "apnea"]
    spans = np.array([(e.onset, e.onset + e.duration) for e in apneas], float).reshape(-1, 2)
    extended, alone = spans.copy(), []
    for event in (e for e in events if event_family(e.type) == "hypopnea"):
        onset, end = event.onset, event.onset + event.duration
        shared = np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], onset)
        if not (shared > 0).any():
            alone.append(event)
            continue
        row = int(shared.argmax())
        extended[row] = min(extended[row, 0], onset), max(extended[row, 1], end)
    for event in (*apneas, *alone):
        onset, end = event.onset, event.onset + event.duration
        before, after = spans[:, 1] <= onset, spans[:, 0] >= end
        extended[before, 1] = np.minimum(extended[before, 1], onset)
        extended[after, 0] = np.maximum(extended[after, 0], end)
    joined = [Event(float(on), float(end - on), e.type) for e, (on, end) in zip(apneas, extended, strict=True)]
    others = [e for e in events if event_family(e.type) not in ("apnea", "hypopnea")]
    return tuple(sorted([*joined, *alone, *others], key=lambda event: (event.onset, event.type)))


def overlapping(events: Sequence[Event], epochs: ArrayLike) -> list[Event]:
    """Those of ``events`` that overlap a true epoch of ``epochs`` [E]."""
    flags = np.asarray(epochs, dtype=bool)
    return [event for event in events if _overlaps(event, flags)]


def index_per_hour(events: Sequence[Event], epochs: ArrayLike) -> float:
    """Those of ``events`` that overlap a true epoch of ``epochs`` [E], per hour of true epochs; nan without one."""
    hours = np.asarray(epochs, dtype=bool).sum() * EPOCH_SECONDS / 3600
    return len(overlapping(events, epochs)) / hours if hours else math.nan


def ahi(events: Sequence[Event], asleep: ArrayLike) -> float:
    """Apnea-hypopnea index by :data:`AHI_DEFINITION`; ``asleep`` [E] is true where an epoch is sleep and breathing was scored."""
    return index_per_hour([e for e in join_overlapping(events) if e.type in RESPIRATORY_TYPES], asleep)


@dataclass(frozen=True)
class EventAgreement:
    """One-to-one matches between detected and scored events."""

    matched: int
    missed: int
    false: int

    @property
    def precision(self) -> float:
        """Share of detected events that match one; nan when none was detected."""
        found = self.matched + self.false
        return self.matched / found if found else math.nan

    @property
    def recall(self) -> float:
        """Share of scored events that were matched; nan when none was scored."""
        held = self.matched + self.missed
        return self.matched / held if held else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both; nan when nothing was scored and nothing detected."""
        total = 2 * self.matched + self.missed + self.false
        return 2 * self.matched / total if total else math.nan

    def __add__(self, other: EventAgreement) -> EventAgreement:
        """Counts of two recordings together."""
        return EventAgreement(self.matched + other.matched, self.missed + other.missed, self.false + other.false)


def match_events(detected: Sequence[Event], scored: Sequence[Event], min_iou: float = 0.2) -> EventAgreement:
    """Match events one to one, greatest intersection over union first, down to ``min_iou`` (above 0).

    0.2 lets an event of 15 s match the two epochs (60 s) it lies across. Ties go to the earlier events.
    """
    matched = len(_matches(_spans(detected), _spans(scored), min_iou))
    return EventAgreement(matched, len(scored) - matched, len(detected) - matched)


def timing_errors(detected: Sequence[Event], scored: Sequence[Event], min_iou: float = 0.2) -> NDArray[np.float64]:
    """Onset and duration of each matched detected event less those of its scored one, in seconds [N, 2]."""
    first, second = _spans(detected), _spans(scored)
    pairs = _matches(first, second, min_iou)
    if not pairs:
        return np.empty((0, 2))
    mine, theirs = (spans[list(index)] for spans, index in zip((first, second), zip(*pairs, strict=True), strict=True))
    return np.stack([mine[:, 0] - theirs[:, 0], np.diff(mine)[:, 0] - np.diff(theirs)[:, 0]], axis=1)


def _matches(first: NDArray[np.float64], second: NDArray[np.float64], min_iou: float) -> list[tuple[int, int]]:
    """Pairs of rows of ``first`` and ``second`` [N, 2] matched one to one."""
    pairs = _overlapping_pairs(first, second, min_iou)
    found: dict[int, int] = {}
    used: set[int] = set()
    for _, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if i not in found and j not in used:
            found[i] = j
            used.add(j)
    return list(found.items())


def _spans(events: Sequence[Event]) -> NDArray[np.float64]:
    """Onset and end [N, 2] by onset."""
    spans = np.array([(event.onset, event.onset + event.duration) for event in events], float).reshape(-1, 2)
    return spans[np.lexsort((spans[:, 1], spans[:, 0]))]


def _overlapping_pairs(first: NDArray[np.float64], second: NDArray[np.float64], min_iou: float) -> list[tuple[float, int, int]]:
    pairs = []
    # Ends need not ascend with onsets, so look back from the latest end reached so far.
    reach = np.maximum.accumulate(second[:, 1]) if len(second) else second[:, 1]
    for i, (onset, end) in enumerate(first):
        for j in range(int(np.searchsorted(reach, onset, "right")), int(np.searchsorted(second[:, 0], end))):
            inter = min(end, second[j, 1]) - max(onset, second[j, 0])
            union = (end - onset) + (second[j, 1] - second[j, 0]) - inter
            if inter > 0 and inter / union >= min_iou:
                pairs.append((inter / union, i, j))
    return pairs


def _overlaps(event: Event, epochs: NDArray[np.bool_]) -> bool:
    first = max(0, math.floor(event.onset / EPOCH_SECONDS))
    last = max(first + 1, math.ceil((event.onset + event.duration) / EPOCH_SECONDS))
    return bool(epochs[first:last].any())
