"""Desaturations and oximetry of a night, by rule from SpO2.

The AASM manual asks for the number of desaturations of 3 % (or 4 %) and more per hour of sleep, the mean and the lowest
saturation, and the time below 90 %; it does not say where a desaturation begins and ends. That is taken from the fiducial points
of Jung et al. as restated by Levy et al. 2021 (Digital oximetry biomarkers, npj Digital Medicine 4:1): SpO2 falls from A by the
criterion or more to its lowest value B, and the desaturation is over at C, where SpO2 is back within 1 % of A or has risen by the
criterion above B. A to C takes 10 s or more; a fall that takes longer than 120 s is a drift of the baseline and counts from the
highest value of its last 120 s.

Seconds without a finger are unscored: they are no part of any fall, minute or hour, and never 0 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import EPOCH_SAMPLES, EPOCH_SECONDS, RATE_HZ
from sleepfm.signals.scorings.scoring import Event

ODI_DEFINITION = (
    "falls of SpO2 by 3 % (4 %) or more from their highest value within 120 s, whose onset lies in sleep, per hour of sleep in "
    "which SpO2 was scored; a fall is over where SpO2 is back within 1 % of that value or has risen by 3 % from its lowest"
)
CRITERION = 3.0
# A to C lasts at least, and A to B at most, so many seconds.
SHORTEST, LONGEST = 10, 120
RECOVERED = 1.0
# Oximeters tell whole percents; what is left of one by storage and resampling is not a smaller fall.
DECIMALS = 1
# Outside of this no oximeter is calibrated, and a file's 0 % is a sensor that is off.
LOWEST, HIGHEST = 50.0, 100.5
# Blood does not change faster (% a second); a probe that comes off does.
FASTEST = 4.0
# Shorter dropouts do not end a fall.
BRIDGED = 10


@dataclass(frozen=True)
class Desaturation:
    """A fall of SpO2 from ``onset`` s over ``duration`` s to its lowest value ``nadir`` %, ``depth`` % below where it began."""

    onset: float
    duration: float
    depth: float
    nadir: float

    @property
    def end(self) -> float:
        """Where it is lowest, in s."""
        return self.onset + self.duration

    def as_event(self) -> Event:
        """The event of the data contract."""
        return Event(self.onset, self.duration, "desaturation")


@dataclass(frozen=True)
class Oximetry:
    """Oximetry of the sleep in which SpO2 was scored; nan without any.

    Attributes:
        hours: of such sleep.
        odi_3, odi_4: desaturations of 3 % and 4 % and more per hour.
        t90_percent: share of the time with SpO2 below 90 %, in %; ``t90_minutes`` the minutes.
        mean, nadir: mean and lowest SpO2 in %.
    """

    hours: float
    odi_3: float
    odi_4: float
    t90_percent: float
    t90_minutes: float
    mean: float
    nadir: float

    def to_json(self) -> dict[str, Any]:
        """Plain types with the definition of the index."""
        return asdict(self) | {"definition": f"ODI: {ODI_DEFINITION}"}


def read_saturation(samples: NDArray[np.float32], unusable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """SpO2 [30 E] of every second in %, nan where it was not scored, from ``samples`` [E * 3000] at 100 Hz.

    Unscored are the epochs that are ``unusable`` [E], values that no oximeter shows, and both sides of a change that is faster
    than blood's.
    """
    middle = np.median(samples.reshape(-1, RATE_HZ), axis=1)
    seconds = np.asarray(np.round(middle, DECIMALS), dtype=np.float64)
    assert samples.size == EPOCH_SAMPLES * len(unusable)
    seconds[np.repeat(unusable, EPOCH_SECONDS) | (seconds < LOWEST) | (seconds > HIGHEST)] = np.nan
    fast = np.flatnonzero(np.abs(np.diff(seconds)) > FASTEST)
    seconds[fast] = seconds[fast + 1] = np.nan
    return seconds


def find_desaturations(saturation: ArrayLike, criterion: float = CRITERION) -> tuple[Desaturation, ...]:
    """Desaturations of ``criterion`` % or more in SpO2 [S], one value a second, nan where unscored; by onset.

    Example:
        >>> falls = find_desaturations([96] * 60 + [94] * 5 + [92] * 15 + [96] * 60)
        >>> [(fall.depth, fall.nadir) for fall in falls]
        [(4.0, 92.0)]
    """
    values = np.asarray(saturation, dtype=float)
    found: list[Desaturation] = []
    scored = np.flatnonzero(np.isfinite(values))
    for stretch in np.split(scored, np.flatnonzero(np.diff(scored) > BRIDGED) + 1):
        found += _of_stretch(stretch.tolist(), values[stretch].tolist(), criterion)
    return tuple(found)


def _of_stretch(seconds: list[int], values: list[float], criterion: float) -> list[Desaturation]:
    """Desaturations of a stretch without long dropouts: ``values`` at ``seconds``."""
    found: list[Desaturation] = []
    # Seconds and values from which a fall may begin, the highest first, each lower than the one before it.
    highest: list[tuple[int, float]] = []
    fall: tuple[int, float, int, float] | None = None
    for second, value in zip(seconds, values, strict=True):
        if fall is not None:
            onset, start, _, lowest = fall
            if value < lowest and second - onset <= LONGEST:
                fall = (onset, start, second, value)
                continue
            if value < start - RECOVERED and value < lowest + criterion and second - onset <= LONGEST:
                continue
            if second - onset >= SHORTEST:
                found.append(_told(fall))
            fall, highest = None, []
        while highest and highest[-1][1] <= value:
            highest.pop()
        highest.append((second, value))
        while second - highest[0][0] > LONGEST:
            highest.pop(0)
        if highest[0][1] - value >= criterion:
            fall = (*highest[0], second, value)
    if fall is not None and seconds[-1] - fall[0] >= SHORTEST:
        found.append(_told(fall))
    return found


def _told(fall: tuple[int, float, int, float]) -> Desaturation:
    onset, start, lowest_at, lowest = fall
    return Desaturation(float(onset), float(lowest_at - onset), round(start - lowest, DECIMALS), lowest)


def summarise_oximetry(saturation: ArrayLike, desaturations: Sequence[Desaturation], asleep: ArrayLike) -> Oximetry:
    """Figures of a night with SpO2 [30 E] over the epochs ``asleep`` [E].

    ``desaturations`` are those of the whole night; one counts where its onset lies in sleep.
    """
    values = np.asarray(saturation, dtype=float)
    sleep = np.repeat(np.asarray(asleep, dtype=bool), EPOCH_SECONDS)
    counted = values[sleep & np.isfinite(values)]
    hours = len(counted) / 3600
    if not len(counted):
        return Oximetry(0.0, *[math.nan] * 6)
    inside = [fall for fall in desaturations if sleep[int(fall.onset)]]
    below = counted < 90
    return Oximetry(
        hours=hours,
        odi_3=sum(fall.depth >= 3 for fall in inside) / hours,
        odi_4=sum(fall.depth >= 4 for fall in inside) / hours,
        t90_percent=100 * float(below.mean()),
        t90_minutes=float(below.sum()) / 60,
        mean=float(counted.mean()),
        nadir=float(counted.min()),
    )
