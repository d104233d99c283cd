"""Which kind an event is of, from what a model says of its seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from sleepfm.signals.scorings.scoring import Event


def tell_kinds(events: Sequence[Event], probability: ArrayLike, kinds: Sequence[str]) -> tuple[Event, ...]:
    """``events`` with the most probable of ``kinds`` as type: the mean over an event's seconds of ``probability`` [S, K] decides.

    An event none of whose seconds has a probability keeps its type.
    """
    chances = np.asarray(probability, dtype=float)
    told = []
    for event in events:
        rows = chances[int(event.onset) : int(event.onset + event.duration)]
        rows = rows[np.isfinite(rows).all(axis=1)]
        told.append(replace(event, type=kinds[int(rows.mean(axis=0).argmax())]) if len(rows) else event)
    return tuple(told)
