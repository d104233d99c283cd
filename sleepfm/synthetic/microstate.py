"""What happens within epochs, second by second: mixed states, eyes open or closed, arousals, body movements.
What happens within epochs, second by second: mixed states, eyes open or closed, arousals, body movements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.drawn_events import Event
from sleepfm.synthetic.noise import Floats
from sleepfm.synthetic.subject import Subject

# An epoch carries the stage of its greater part (AASM), so some seconds look like another stage. Rows: scored
# stage.
MIXTURE = np.array(
    [
        [0.93, 0.07, 0.00, 0.00, 0.00],
        [0.20, 0.52, 0.18, 0.00, 0.10],
        [0.01, 0.07, 0.87, 0.05, 0.00],
        [0.00, 0.00, 0.25, 0.75, 0.00],
        [0.03, 0.17, 0.02, 0.00, 0.78],
    ]
)
BOUT_SECONDS = 8.0
# Standard deviation of where a stage really changes, around the epoch's edge (s).
EDGE_SECONDS = 6.0
OPEN_SECONDS, CLOSED_SECONDS = 20.0, 30.0
# Movements an hour by stage W, N1, N2, N3, REM, besides those that come with arousals.
MOVEMENTS = np.array([14.0, 4.0, 1.5, 0.6, 1.5])
MOVING_AROUSAL = 0.25


@dataclass(frozen=True)
class Microstates:
    """What happens in each second [T] of a night.

    Attributes:
        state: of the brain, as :class:`Stage`.
        body: of the chin and the eyes, as :class:`Stage`: in REM the muscles stay slack while the EEG wavers.
        eyes_open: when awake.
        arousal: 0 to 1.
        movements: onset and duration in s of body movements.
    """

    state: NDArray[np.int8]
    body: NDArray[np.int8]
    eyes_open: NDArray[np.bool_]
    arousal: Floats
    movements: tuple[tuple[float, float], ...]


def draw_microstates(subject: Subject, stages: NDArray[np.int8], arousals: Sequence[Event]) -> Microstates:
    """The seconds of a night scored as ``stages`` with ``arousals``."""
    rng = subject.rng("microstates")
    seconds = len(stages) * EPOCH_SECONDS
    bout = np.cumsum(rng.random(seconds) < 1.0 / BOUT_SECONDS)
    shift = EDGE_SECONDS * rng.standard_normal(int(bout[-1]) + 1)[bout]
    place = np.clip((np.arange(seconds) + shift) // EPOCH_SECONDS, 0, len(stages) - 1).astype(np.int64)
    chosen = rng.random(int(bout[-1]) + 1)[bout]
    state = (MIXTURE.cumsum(axis=1)[stages[place]] < chosen[:, None]).sum(axis=1).astype(np.int8)
    state = np.minimum(state, Stage.REM).astype(np.int8)
    dreaming = (stages[place] == Stage.REM) & (state != Stage.W)
    tense = rng.random(int(bout[-1]) + 1)[bout] < subject.rem_without_atonia
    body = np.where(dreaming, np.where(tense, Stage.N2, Stage.REM), state).astype(np.int8)

    arousal = np.zeros(seconds, dtype=np.float32)
    movements: list[tuple[float, float]] = []
    for event in arousals:
        first, last = int(event.onset), int(np.ceil(event.end))
        arousal[first:last] = 1.0
        if rng.random() < MOVING_AROUSAL:
            movements.append((event.onset + 0.5, max(1.5, event.duration * rng.uniform(0.3, 0.9))))
    rate = MOVEMENTS[np.repeat(stages, EPOCH_SECONDS)] / 3600.0
    movements.extend((float(start), float(rng.uniform(2.0, 10.0))) for start in np.flatnonzero(rng.random(seconds) < rate))
    return Microstates(state, body, _eyes(rng, seconds), arousal, tuple(sorted(movements)))


def _eyes(rng: np.random.Generator, seconds: int) -> NDArray[np.bool_]:
    count = int(2 * seconds / (OPEN_SECONDS + CLOSED_SECONDS)) + 16
    means = np.tile([OPEN_SECONDS, CLOSED_SECONDS], count)
    lengths = 2 + rng.exponential(means).astype(np.int64)
    return np.repeat(np.tile([True, False], count), lengths)[:seconds]
