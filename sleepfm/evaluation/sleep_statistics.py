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
    """Minutes and percentages of a night (AASM manual, parameters to be reported). What cannot be said is nan, the count None.

    Where lights out and lights on are not known, ``time_in_bed`` (TRT) runs from the first scored epoch to the last, so that what
    was recorded before the electrodes were on, or after they were off, belongs to no figure. From these:

    * ``total_sleep_time`` (TST): minutes of any sleep stage; ``efficiency``: TST / TRT in percent.
    * ``latency`` (SL): from the start of TRT to the first epoch of sleep; ``rem_latency``: from there to the first epoch of REM.
    * ``waso``: Wake from the first epoch of sleep to the end of TRT, TRT - SL - TST less what is unscored in between.
    * ``awakenings``: runs of Wake between two epochs of sleep.

    ``unscored`` counts all unscored epochs of the recording, ``unscored_in_bed`` those within TRT. The latter are neither sleep
    nor wake, so that TST, efficiency and WASO are lower bounds where there are any.
    """

    recorded: float
    time_in_bed: float
    total_sleep_time: float
    efficiency: float
    latency: float
    rem_latency: float
    waso: float
    awakenings: int | None
    unscored: float
    unscored_in_bed: float
    stage_minutes: dict[str, float]
    stage_percent: dict[str, float]


def sleep_statistics(stages: ArrayLike, in_bed: tuple[int | None, int | None] = (None, None)) -> SleepStatistics:
    """Statistics of ``stages`` [E]; unscored epochs (-1) belong to no stage and are reported apart.

    Args:
        in_bed: first epoch after lights out and the one after the last before lights on; for None the first
            and last scored epoch.

    Example:
        >>> night = sleep_statistics([0, 0, 1, 2, 2, 0, 4, 4])
        >>> night.time_in_bed, night.total_sleep_time, night.latency, night.waso
        (4.0, 2.5, 1.0, 0.5)
    """
    recorded = np.asarray(stages)
    first, stop = in_bed
    scored = np.flatnonzero(recorded >= 0)
    scored = scored[(scored >= (first or 0)) & (scored < (len(recorded) if stop is None else stop))]
    if len(scored):
        first, stop = scored[0] if first is None else first, scored[-1] + 1 if stop is None else stop
    stage = recorded[first:stop] if len(scored) else recorded[:0]
    asleep = np.flatnonzero(stage > Stage.W)
    tst = len(asleep) * MINUTES if len(scored) else math.nan
    latency = rem_latency = waso = math.nan
    if len(asleep):
        onset = int(asleep[0])
        latency = onset * MINUTES
        waso = float((stage[onset:] == Stage.W).sum() * MINUTES)
        rem = np.flatnonzero(stage == Stage.REM)
        rem_latency = float((rem[0] - onset) * MINUTES) if len(rem) else math.nan
    night = stage[asleep[0] : asleep[-1] + 1] if len(asleep) else stage[:0]
    awake = night[night >= 0] == Stage.W
    minutes = {name: float((stage == k).sum() * MINUTES) if len(scored) else math.nan for k, name in enumerate(STAGE_NAMES)}
    return SleepStatistics(
        recorded=len(recorded) * MINUTES,
        time_in_bed=len(stage) * MINUTES if len(scored) else math.nan,
        total_sleep_time=tst,
        efficiency=100 * len(asleep) / len(stage) if len(scored) else math.nan,
        latency=latency,
        rem_latency=rem_latency,
        waso=waso,
        awakenings=int((np.diff(awake.astype(np.int8)) == 1).sum()) if len(scored) else None,
        unscored=float((recorded < 0).sum()) * MINUTES,
        unscored_in_bed=(len(stage) - len(scored)) * MINUTES,
        stage_minutes=minutes,
        stage_percent={name: 100 * minutes[name] / tst if len(asleep) else math.nan for name in STAGE_NAMES[1:]},
    )
