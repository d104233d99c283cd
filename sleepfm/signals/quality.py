"""Quality of every epoch of one channel, judged on the signal before filtering."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT, EPOCH_SECONDS

# Smallest standard deviation of a connected electrode and largest amplitude of a plausible signal, by canonical unit.
_FLAT_BELOW = {"uV": 0.1, "mV": 0.002, "%": -1.0, "": 0.0}
_RANGE = {"uV": (-5000.0, 5000.0), "mV": (-20.0, 20.0), "%": (40.0, 100.5), "": (-np.inf, np.inf)}
_CLIPPED_SHARE = 0.01
_DISCONNECTED_SHARE = 0.5
_MAINS_SHARE = 0.5


class Quality(IntFlag):
    """What is wrong with an epoch; 0 is nothing."""

    FLAT = 1
    CLIPPED = 2
    DISCONNECTED = 4
    MAINS = 8
    OUT_OF_RANGE = 16
    GAP = 32


def epoch_quality(raw: NDArray[np.float32], rate: float, channel: str, n_epochs: int) -> NDArray[np.uint8]:
    """Bits of :class:`Quality` for every epoch, ``[n_epochs]``.

    Args:
        raw: ``[T]`` in the channel's canonical unit at its native ``rate`` in Hz, NaN inside gaps.

    Flat: hardly any variation. Clipped: more than 1 % of samples at the night's extreme values. Disconnected: more than
    half of them. Mains: more than half of the variance within 1 Hz of 50 or 60 Hz. Out of range: values that no electrode
    or oximeter gives.
    """
    unit = CHANNEL_UNIT[channel]
    flags = np.zeros(n_epochs, np.uint8)
    if n_epochs == 0:
        return flags
    samples = int(EPOCH_SECONDS * rate)
    starts = np.round(np.arange(n_epochs) * EPOCH_SECONDS * rate).astype(np.int64)
    lowest, highest = np.nanmin(raw, initial=np.inf), np.nanmax(raw, initial=-np.inf)
    low, high = _RANGE[unit]
    for epoch, start in enumerate(starts):
        x = raw[start : start + samples]
        finite = x[np.isfinite(x)]
        if len(finite) < samples:
            flags[epoch] |= Quality.GAP
        if len(finite) < 2:
            continue
        if finite.std() <= _FLAT_BELOW[unit]:
            flags[epoch] |= Quality.FLAT
        at_extremes = ((finite == lowest) | (finite == highest)).mean()
        if unit != "%" and at_extremes > _CLIPPED_SHARE:
            flags[epoch] |= Quality.CLIPPED | (Quality.DISCONNECTED if at_extremes > _DISCONNECTED_SHARE else 0)
        if finite.min() < low or finite.max() > high:
            flags[epoch] |= Quality.OUT_OF_RANGE
        if unit in ("uV", "mV") and _mains_share(finite, rate) > _MAINS_SHARE:
            flags[epoch] |= Quality.MAINS
    return flags


def _mains_share(x: NDArray[np.float32], rate: float) -> float:
    """Share of the variance within 1 Hz of 50 or 60 Hz; 0 where the rate does not reach that far."""
    if rate / 2 <= 51:
        return 0.0
    power = np.abs(np.fft.rfft(x - x.mean())) ** 2
    frequency = np.fft.rfftfreq(len(x), 1 / rate)
    near = (np.abs(frequency - 50) <= 1) | (np.abs(frequency - 60) <= 1)
    total = power.sum()
    return float(power[near].sum() / total) if total > 0 else 0.0
