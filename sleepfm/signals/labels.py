"""Labels of 30-s epochs from scored intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, Stage
from sleepfm.signals.scoring_types import Scoring

EventRule = Literal["overlap", "reference"]
LABELS = {
    "apnea": APNEA_TYPES,
    "hypopnea": ("hypopnea",),
    "desaturation": ("desaturation",),
    "arousal": ("arousal",),
}
# The AASM's least duration of an apnea or hypopnea (AASM manual, respiratory rules).
_LEAST_OVERLAP = 10.0
# Onset plus duration minus onset is not always the duration.
_TOLERANCE = 1e-6


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
    """Whether each epoch [E] holds an event of ``types``: 0 or 1, or -1 throughout if events were not scored.

    ``overlap``: an event labels the epochs that it overlaps by at least 10 s, or by its whole length if that is
    less. ``reference``: epochs ``round(start / 30)`` to ``round(end / 30) - 1`` as in the released code, by which
    two of three 10-s events label no epoch; only for comparison.
    """
    if scoring is None or not scoring.has_events:
        return np.full(n_epochs, -1, dtype=np.int8)
    labels = np.zeros(n_epochs, dtype=np.int8)
    wanted = frozenset(types)
    for event in scoring.events:
        if event.type not in wanted:
            continue
        end = event.onset + event.duration
        if rule == "reference":
            # Half to even, as Python's round in the reference's parser.
            first, stop = round(event.onset / EPOCH_SECONDS), round(end / EPOCH_SECONDS)
            labels[max(first, 0) : max(stop, 0)] = 1
            continue
        least = min(_LEAST_OVERLAP, event.duration) - _TOLERANCE
        first, last = max(0, int(event.onset // EPOCH_SECONDS)), min(n_epochs - 1, int(end // EPOCH_SECONDS))
        # Epochs between the first and the last are covered whole.
        labels[first + 1 : max(first + 1, last)] = 1
        for epoch in {first, last} if first <= last else ():
            overlap = min(end, (epoch + 1) * EPOCH_SECONDS) - max(event.onset, epoch * EPOCH_SECONDS)
            if overlap >= least:
                labels[epoch] = 1
    return labels
