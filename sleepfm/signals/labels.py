"""Labels of 30-s epochs from scored intervals and events."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.signals.annotations import Scoring

OVERLAP_SECONDS = 10.0


def stage_labels(scoring: Scoring, n_epochs: int) -> NDArray[np.int8]:
    """Stage of every epoch, ``[n_epochs]``: the one scored for more than half of it, else unscored (-1).

    Onsets are honoured, so a gap in the scoring is unscored and moves nothing after it.
    """
    seconds = np.zeros((n_epochs, 5))
    for interval in scoring.stages:
        if interval.stage != Stage.UNSCORED:
            first, overlap = _overlaps(interval.onset, interval.duration, n_epochs)
            seconds[first : first + len(overlap), interval.stage] += overlap
    if n_epochs == 0:
        return np.zeros(0, np.int8)
    longest = seconds.argmax(axis=1)
    return np.where(seconds.max(axis=1) > EPOCH_SECONDS / 2, longest, Stage.UNSCORED).astype(np.int8)


def event_labels(scoring: Scoring, n_epochs: int, types: Collection[str], rule: str = "overlap") -> NDArray[np.int8]:
    """Whether each epoch holds an event of ``types``: ``[n_epochs]`` of 0 and 1, or -1 where events were not scored.

    ``overlap`` (default): at least 10 s of the event are in the epoch, or the whole event where it is shorter.
    ``reference``: epochs ``round(start / 30)`` to ``round(end / 30) - 1``, as SynthSleepNet's released parser labels
    them; it leaves many short events without any epoch and is here for comparison only.
    """
    if not scoring.has_events:
        return np.full(n_epochs, -1, np.int8)
    labels = np.zeros(n_epochs, np.int8)
    for event in scoring.events:
        if event.type not in types:
            continue
        if rule == "reference":
            first = round(event.onset / EPOCH_SECONDS)
            labels[max(first, 0) : max(round((event.onset + event.duration) / EPOCH_SECONDS), 0)] = 1
        else:
            first, overlap = _overlaps(event.onset, event.duration, n_epochs)
            enough = overlap >= min(OVERLAP_SECONDS, event.duration) - 1e-6
            labels[first : first + len(overlap)][enough] = 1
    return labels


def _overlaps(onset: float, duration: float, n_epochs: int) -> tuple[int, NDArray[np.float64]]:
    """First epoch that the interval touches, and its seconds in that and every following epoch it touches."""
    end = min(onset + duration, n_epochs * EPOCH_SECONDS)
    onset = max(onset, 0.0)
    if end <= onset:
        return 0, np.zeros(0)
    first = int(onset // EPOCH_SECONDS)
    last = int(np.ceil(end / EPOCH_SECONDS))
    edges = np.arange(first, last + 1) * EPOCH_SECONDS
    return first, np.minimum(edges[1:], end) - np.maximum(edges[:-1], onset)
