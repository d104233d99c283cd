"""Respiratory events, their index per hour of sleep, and agreement with scored events.

A model with an event head tells seconds apart, and its events have an onset and a duration. A model of epochs says whether an
epoch holds an event, not where: what it gives are runs of consecutive positive epochs. Two events in neighbouring epochs are
one run, so that runs are counted as runs and never as events.
"""

from __future__ import annotations

import math
from collections import Counter
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
# Epochs of sleep without a label of breathing hold what could not be understood: each may be an event. With more of them in an
# hour than the AHI at which apnea begins (AASM: 5/h), a scorer's index is not known.
MOST_UNKNOWN_PER_HOUR = 5.0


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
    """Runs of epochs whose ``probability`` [E] of ``kind`` reaches ``threshold``; nan never does.

    Example:
        >>> positive_runs([0.1, 0.9, 0.8, 0.2], 0.5, "apnea")
        (Event(onset=30.0, duration=60.0, type='apnea'),)
    """
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

    Example:
        >>> seconds = [0.1] * 5 + [0.9] * 12 + [0.1] * 13
        >>> find_events(seconds, 0.5, "hypopnea", located=True)
        (Event(onset=5.0, duration=12.0, type='hypopnea'),)
    """
    return (events_from_seconds if located else positive_runs)(probability, threshold, kind)


def join_overlapping(events: Sequence[Event]) -> tuple[Event, ...]:
    """Events by onset, of which no hypopnea overlaps an apnea: such a hypopnea is part of the apnea that it overlaps most.

    An event of which a portion meets the criteria of an apnea is an apnea as a whole (AASM manual, notes to the apnea rule): it
    lasts from the first onset to the last end of both, though not into another apnea or hypopnea. Other events stay as they
    are.
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


def mostly_within(event: Event, epochs: ArrayLike) -> bool:
    """Whether at least half of ``event`` lies in true epochs of ``epochs`` [E]."""
    flags = np.asarray(epochs, dtype=bool)
    onset, end = event.onset, event.onset + event.duration
    first, last = max(0, math.floor(onset / EPOCH_SECONDS)), min(len(flags), math.ceil(end / EPOCH_SECONDS))
    inside = sum(
        min(end, (epoch + 1) * EPOCH_SECONDS) - max(onset, epoch * EPOCH_SECONDS) for epoch in range(first, last) if flags[epoch]
    )
    return inside > 0 and inside >= event.duration / 2


def index_per_hour(events: Sequence[Event], epochs: ArrayLike) -> float:
    """Those of ``events`` that overlap a true epoch of ``epochs`` [E], per hour of true epochs; nan without one."""
    hours = np.asarray(epochs, dtype=bool).sum() * EPOCH_SECONDS / 3600
    return len(overlapping(events, epochs)) / hours if hours else math.nan


def is_known(asleep: ArrayLike, labelled: ArrayLike) -> bool:
    """Whether a scorer's index of a night is known: of the epochs that the scorer staged as sleep, ``asleep`` [E], at most
    :data:`MOST_UNKNOWN_PER_HOUR` in an hour have no label of these events (``labelled`` [E] is false).

    Example:
        >>> is_known([True] * 120, [False] * 5 + [True] * 115), is_known([True] * 120, [False] * 6 + [True] * 114)
        (True, False)
    """
    sleep = np.asarray(asleep, dtype=bool)
    unknown = sleep & ~np.asarray(labelled, dtype=bool)
    return bool(unknown.sum() * 3600 <= MOST_UNKNOWN_PER_HOUR * EPOCH_SECONDS * sleep.sum())


def ahi(events: Sequence[Event], asleep: ArrayLike) -> float:
    """Apnea-hypopnea index by :data:`AHI_DEFINITION`; ``asleep`` [E] is true where an epoch is sleep and breathing was
    scored."""
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


# Events that overlap by a fifth of their union are the same event, unless another share is stated.
MIN_IOU = 0.2


def match_events(detected: Sequence[Event], scored: Sequence[Event], min_iou: float = MIN_IOU) -> EventAgreement:
    """Match events one to one, as :func:`matched_pairs`, and count.

    0.2 lets an event of 15 s match the two epochs (60 s) it lies across.
    """
    matched = len(matched_pairs(detected, scored, min_iou))
    return EventAgreement(matched, len(scored) - matched, len(detected) - matched)


def timing_of(pairs: Sequence[tuple[Event, Event]]) -> NDArray[np.float64]:
    """Onset and duration of the first of each pair less those of the second, in seconds [N, 2]."""
    errors = [(mine.onset - theirs.onset, mine.duration - theirs.duration) for mine, theirs in pairs]
    return np.array(errors, float).reshape(-1, 2)


def matched_pairs(detected: Sequence[Event], scored: Sequence[Event], min_iou: float = MIN_IOU) -> list[tuple[int, int]]:
    """Indices of ``detected`` and ``scored`` events matched one to one.

    Two events can be matched whose intersection over union is at least ``min_iou`` (above 0). As many are matched as can be
    (the maximum matching of ``mir_eval``, Raffel et al. 2014), and of all such matchings the one with the greatest sum of
    intersections over unions. The order of the events plays no part.
    """
    first, second = _spans(detected), _spans(scored)
    order = [np.lexsort((spans[:, 1], spans[:, 0])) for spans in (first, second)]
    pairs = _overlapping_pairs(first[order[0]], second[order[1]], min_iou)
    found = _assigned(pairs)
    return [(int(order[0][i]), int(order[1][j])) for i, j in found]


def _assigned(pairs: Sequence[tuple[float, int, int]]) -> list[tuple[int, int]]:
    """The maximum matching of ``pairs`` (weight of at most 1, row, column) with the greatest weight."""
    rows, columns = (Counter(pair[side] for pair in pairs) for side in (1, 2))
    found = [(i, j) for _, i, j in pairs if rows[i] == columns[j] == 1]
    contested = [pair for pair in pairs if not rows[pair[1]] == columns[pair[2]] == 1]
    if contested:
        # A job that trains and finds no event need not wait for it.
        from scipy.optimize import linear_sum_assignment
    # Of contested events those that hang together are few, and neighbours: pairs ascend with onsets.
    while contested:
        group_rows, group_columns = {contested[0][1]}, {contested[0][2]}
        size = 0
        while size < len(group_rows) + len(group_columns):
            size = len(group_rows) + len(group_columns)
            for _, i, j in contested:
                if i in group_rows or j in group_columns:
                    group_rows.add(i)
                    group_columns.add(j)
        group = [pair for pair in contested if pair[1] in group_rows]
        contested = [pair for pair in contested if pair[1] not in group_rows]
        at_row, at_column = ({key: n for n, key in enumerate(sorted(keys))} for keys in (group_rows, group_columns))
        weight = np.zeros((len(at_row), len(at_column)))
        for ratio, i, j in group:
            # One pair more is worth more than any ratios.
            weight[at_row[i], at_column[j]] = 1 + ratio / (min(weight.shape) + 1)
        there = {(at_row[i], at_column[j]): (i, j) for _, i, j in group}
        found += [there[place] for place in zip(*linear_sum_assignment(weight, maximize=True), strict=True) if place in there]
    return found


def _spans(events: Sequence[Event]) -> NDArray[np.float64]:
    """Onset and end [N, 2]."""
    return np.array([(event.onset, event.onset + event.duration) for event in events], float).reshape(-1, 2)


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
