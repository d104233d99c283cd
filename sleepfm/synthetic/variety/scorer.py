"""A scorer's disagreement with the truth, as five scorers of the same nights show it (``scorers.yaml``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtr

from sleepfm.config import Config, load_config
from sleepfm.constants import STAGE_NAMES, Stage
from sleepfm.synthetic.noise import drift
from sleepfm.synthetic.subject import Subject

PATH = Path(__file__).with_name("scorers.yaml")
# Rechtschaffen and Kales' code of each stage.
CODES = np.array([0, 1, 2, 3, 5], dtype=np.int8)
_STAGE_OF = {0: Stage.W, 1: Stage.N1, 2: Stage.N2, 3: Stage.N3, 4: Stage.N3, 5: Stage.REM}


class ScorerStatistics(Config):
    """How scorers call stages.

    Attributes:
        distances: least distance in epochs, of each bucket, to the nearest epoch of another stage; the first is 1.
        called: by stage and bucket, the probability of each call.
        night: standard deviation, on the scale of a standard normal, of how much a whole night is disagreed on.
        memory: correlation from one epoch to the next of what is left.
    """

    distances: list[int]
    called: dict[str, list[list[float]]]
    night: float = Field(ge=0, lt=1)
    memory: float = Field(ge=0, lt=1)


@cache
def scorer_statistics() -> ScorerStatistics:
    """The shipped numbers."""
    return load_config(ScorerStatistics, PATH)


def call_stages(subject: Subject, codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """``codes`` [E] of Rechtschaffen and Kales as a scorer of ``subject``'s night calls them; codes of no stage stay.

    Disagreement depends on the stage and on how near the next change is, comes in runs, and is rare in some nights and
    frequent in others.
    """
    statistics = scorer_statistics()
    rng = subject.rng("variety/scorer")
    stages = np.array([_STAGE_OF.get(code, Stage.UNSCORED) for code in codes.tolist()], dtype=np.int8)
    bucket = np.searchsorted(statistics.distances, distance_to_change(stages), side="right") - 1
    own = statistics.night * rng.standard_normal()
    steps = -1.0 / np.log(max(statistics.memory, 1e-9))
    place = ndtr(own + np.sqrt(1.0 - statistics.night**2) * drift(rng, len(stages), steps))
    called = codes.copy()
    for stage, name in enumerate(STAGE_NAMES):
        for number, row in enumerate(statistics.called[name]):
            here = np.flatnonzero((stages == stage) & (bucket == number))
            order = _likeliest(row, stage)
            bounds = np.cumsum([row[other] for other in order])
            drawn = np.searchsorted(bounds / bounds[-1], place[here], side="right")
            said = np.array(order, dtype=np.int8)[np.minimum(drawn, len(order) - 1)]
            called[here] = np.where(said == stage, codes[here], CODES[said])
    return called


def distance_to_change(stages: NDArray[np.int8]) -> NDArray[np.int64]:
    """Epochs from each [E] to the nearest one of another stage, 1 beside it; the number of epochs where there is none."""
    changes = np.flatnonzero(np.diff(stages))
    if not len(changes):
        return np.full(len(stages), len(stages), dtype=np.int64)
    place = np.arange(len(stages))
    after = np.searchsorted(changes, place)  # the change behind each epoch is changes[after]
    ahead = np.where(after < len(changes), changes[np.minimum(after, len(changes) - 1)] + 1 - place, len(stages))
    back = np.where(after > 0, place - changes[np.maximum(after, 1) - 1], len(stages))
    return np.minimum(ahead, back)


def _likeliest(row: list[float], stage: int) -> list[int]:
    """The stage itself first, then the likeliest other one: a run of disagreement has one name."""
    return [stage, *sorted((other for other in range(len(row)) if other != stage), key=lambda other: -row[other])]
