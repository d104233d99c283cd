"""Labels of 30-s epochs from scored intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, Stage
from sleepfm.signals.scorings.scoring import Event, Scoring

EventRule = Literal["overlap", "reference"]
# Types of events that give each label.
LABEL_EVENTS = {
    "apnea": APNEA_TYPES,
    "hypopnea": ("hypopnea",),
    "desaturation": ("desaturation",),
    "arousal": ("arousal",),
}
# Version of each rule; a data set keeps it, and one that names none has version 1 of its rule.
RULE_VERSION: dict[EventRule, int] = {"overlap": 2, "reference": 1}
_RULES = {
    ("overlap", 2): "an event labels the epoch of its largest overlap and every epoch that it overlaps by 10 s or more",
    (
        "overlap",
        1,
    ): "an event labels the epochs that it overlaps by 10 s or by its whole length; one across two epochs may label none",
    ("reference", 1): "an event labels the epochs from its rounded start to its rounded end; a short one may label none",
}
# The AASM's least duration of an apnea or hypopnea (AASM manual, respiratory rules).
_LEAST_OVERLAP = 10.0
# Onset plus duration minus onset is not always the duration.
_TOLERANCE = 1e-6


def describe_rule(rule: str, version: int) -> str:
    """Name, version and meaning of a rule, also of those that only older data sets have."""
    return f"{rule}, version {version}: {_RULES.get((rule, version), 'not known here')}"


def stage_labels(scoring: Scoring | None, n_epochs: int) -> NDArray[np.int8]:
    """Stage of each epoch [E], -1 where unscored.

    An epoch has the stage in force at its middle, which is that of the larger part where a scoring does not start
    with the recording. Nothing is carried over a gap.
    """
    labels = np.full(n_epochs, Stage.UNSCORED, dtype=np.int8)
    if scoring is None or not scoring.stages:
        return labels
    onsets = np.array([interval.onset for interval in scoring.stages])
    ends = np.array([interval.end for interval in scoring.stages])
    stages = np.array([interval.stage for interval in scoring.stages], dtype=np.int8)
    middle = (np.arange(n_epochs) + 0.5) * EPOCH_SECONDS
    current = np.searchsorted(onsets, middle, side="right") - 1
    inside = (current >= 0) & (middle < ends[current])
    labels[inside] = stages[current[inside]]
    return labels


def event_labels(scoring: Scoring | None, n_epochs: int, types: Iterable[str], rule: EventRule = "overlap") -> NDArray[np.int8]:
    """Whether each epoch [E] holds an event of ``types``: 0 or 1, or -1 throughout if they were not scored or are
    unreliable.

    ``overlap``: an event labels the epoch of its largest overlap, the earlier of two, and every epoch that it overlaps by
    10 s or more, so that each one labels an epoch. ``reference``: epochs ``round(start / 30)`` to ``round(end / 30) - 1`` as
    in the released code, by which two of three 10-s events label no epoch; only for comparison. What lies outside the
    epochs counts for neither.

    Of apneas and hypopneas an epoch that holds none is -1 where a respiratory event that was not understood touches it, and, if
    only some kinds of apnea are asked for, where an apnea of unknown kind does; of arousals and desaturations where a text
    that is not understood or damaged times may mean one.
    """
    wanted = frozenset(types)
    if scoring is None or not scoring.has_events or not wanted.isdisjoint(scoring.unreliable):
        return np.full(n_epochs, -1, dtype=np.int8)
    labels = np.zeros(n_epochs, dtype=np.int8)
    for event in scoring.events:
        if event.type in wanted:
            _mark(labels, event, rule)
    doubtful = list(scoring.unclear) if wanted & {*APNEA_TYPES, "hypopnea"} else []
    doubtful += [event for event in scoring.untimed if event.type in wanted]
    if wanted & set(APNEA_TYPES) and "apnea" not in wanted:
        doubtful += [event for event in scoring.events if event.type == "apnea"]
    if doubtful:
        labels[touched(doubtful, n_epochs, EPOCH_SECONDS) & (labels == 0)] = -1
    return labels


def touched(events: Iterable[Event], n: int, seconds: float) -> NDArray[np.bool_]:
    """Which of ``n`` consecutive stretches of ``seconds`` an event overlaps, or begins in if it has no duration: [n]."""
    covered = np.zeros(n, dtype=np.bool_)
    for event in events:
        end = event.onset + event.duration
        first, stop = math.floor(event.onset / seconds), math.ceil(end / seconds)
        # A quotient may be rounded to the border that its time is a little before or after.
        first -= first * seconds > event.onset
        stop += stop * seconds < end
        covered[max(first, 0) : max(stop, first + 1, 0)] = True
    return covered


def _mark(labels: NDArray[np.int8], event: Event, rule: EventRule) -> None:
    """Set the epochs of one event to 1."""
    onset, end = event.onset, event.onset + event.duration
    if rule == "reference":
        # Half to even, as Python's round in the reference's parser.
        first, stop = round(onset / EPOCH_SECONDS), round(end / EPOCH_SECONDS)
        labels[max(first, 0) : max(stop, 0)] = 1
        return
    begin, stop_at = max(onset, 0.0), min(end, float(len(labels) * EPOCH_SECONDS))
    if begin >= len(labels) * EPOCH_SECONDS or stop_at < begin or (stop_at == begin and event.duration > 0):
        return
    first, last = int(begin // EPOCH_SECONDS), min(int(stop_at // EPOCH_SECONDS), len(labels) - 1)
    # Epochs between the first and the last are covered whole.
    labels[first + 1 : last] = 1
    at_first = min(stop_at, (first + 1.0) * EPOCH_SECONDS) - begin
    at_last = stop_at - max(begin, last * float(EPOCH_SECONDS))
    if at_first >= _LEAST_OVERLAP - _TOLERANCE or (last <= first + 1 and at_first >= at_last - _TOLERANCE):
        labels[first] = 1
    if at_last >= _LEAST_OVERLAP - _TOLERANCE or (last == first + 1 and at_last > at_first + _TOLERANCE):
        labels[last] = 1
