"""What a hypnogram says about a night, in the terms of a sleep report (AASM manual, reporting parameters)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES, Stage

MINUTES = EPOCH_SECONDS / 60


@dataclass(frozen=True)
class SleepStatistics:
    """Minutes and percentages of a night. The time in bed is the whole recording: lights-out is not known
    from an EDF.

    ``latency`` runs from the recording's start to the first epoch of any sleep stage, ``rem_latency`` from
    there to the first REM epoch, ``waso`` is Wake between the first and the last epoch of sleep; each is nan
    where it does not occur. ``efficiency`` is total sleep time over scored time in bed, in percent.
    """

    time_in_bed: float
    total_sleep_time: float
    efficiency: float
    latency: float
    rem_latency: float
    waso: float
    awakenings: int
    unscored: float
    stage_minutes: dict[str, float]
    stage_percent: dict[str, float]


def sleep_statistics(stages: ArrayLike) -> SleepStatistics:
    """Statistics of ``stages`` [E]; unscored epochs (-1) belong to no stage and are reported apart."""
    stage = np.asarray(stages)
    asleep = stage > Stage.W
    n_scored, n_asleep = int((stage >= 0).sum()), int(asleep.sum())
    minutes = {name: float((stage == k).sum() * MINUTES) for k, name in enumerate(STAGE_NAMES)}
    latency = rem_latency = waso = math.nan
    awakenings = 0
    if n_asleep:
        onset, last = np.flatnonzero(asleep)[[0, -1]]
        wake = stage[onset : last + 1] == Stage.W
        waso = float(wake.sum() * MINUTES)
        awakenings = int((np.diff(wake.astype(np.int8)) == 1).sum())
        latency = float(onset * MINUTES)
        rem = np.flatnonzero(stage == Stage.REM)
        if len(rem):
            rem_latency = float((rem[0] - onset) * MINUTES)
    return SleepStatistics(
        time_in_bed=float(len(stage) * MINUTES),
        total_sleep_time=float(n_asleep * MINUTES),
        efficiency=100 * n_asleep / n_scored if n_scored else math.nan,
        latency=latency,
        rem_latency=rem_latency,
        waso=waso,
        awakenings=awakenings,
        unscored=float((stage < 0).sum() * MINUTES),
        stage_minutes=minutes,
        stage_percent={name: 100 * minutes[name] / (n_asleep * MINUTES) if n_asleep else math.nan for name in STAGE_NAMES[1:]},
    )
