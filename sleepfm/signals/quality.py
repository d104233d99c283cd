"""What is wrong with each epoch of a channel, judged on the recorded signal before any filter."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.cohort import GENERIC, QualityLimits, load_cohort
from sleepfm.signals.filters import centre


class Quality(IntFlag):
    """Bits of an epoch's quality; 0 is good."""

    FLAT = 1
    CLIPPED = 2
    DISCONNECTED = 4
    MAINS = 8
    OUT_OF_RANGE = 16
    GAP = 32


# Shares of an epoch from which on a fault counts.
_FLAT_SHARE = 0.5
_CLIPPED_SHARE = 0.01
_RANGE_SHARE = 0.05
_LOW_SHARE = 0.1
# Share of the variance within a second that lies about the mains frequency.
_MAINS_SHARE = 0.5
_MAINS_HZ = (50.0, 60.0)
_CHUNK_EPOCHS = 64


def epoch_quality(
    signal: NDArray[np.float32],
    rate: float,
    channel: str,
    n_epochs: int,
    limits: tuple[float, float] | None = None,
    thresholds: QualityLimits | None = None,
) -> NDArray[np.uint8]:
    """Bits of :class:`Quality` for each epoch, [E] uint8.

    Args:
        signal: [T] in the canonical unit at its native ``rate``, NaN in gaps.
        limits: the recorder's range in that unit; samples at either end are clipped.
        thresholds: limits of the channel, by default those in ``configs/cohorts/defaults.yaml``.

    FLAT: half of the seconds vary by no more than a threshold. CLIPPED: 1 % of the samples at the recorder's
    limits. OUT_OF_RANGE: 5 % far from the night's median. DISCONNECTED: mains and out of range together, as from
    an electrode that came off; in oximetry, 10 % below what a sensor on a finger shows. MAINS: most of the
    variance within a second at 50 or 60 Hz. GAP: a sample is missing.
    """
    if thresholds is None:
        thresholds = load_cohort(GENERIC).quality.get(channel, QualityLimits())
    quality = np.zeros(n_epochs, dtype=np.uint8)
    middle = float(centre(signal))
    length = max(1, int(EPOCH_SECONDS * rate))
    regular = length == EPOCH_SECONDS * rate and n_epochs * length <= len(signal)
    for first in range(0, n_epochs, _CHUNK_EPOCHS):
        stop = min(n_epochs, first + _CHUNK_EPOCHS)
        if regular:
            epochs = signal[first * length : stop * length].reshape(-1, length)
        else:
            starts = np.rint(np.arange(first, stop) * EPOCH_SECONDS * rate).astype(np.int64)
            epochs = signal[np.minimum(starts[:, None] + np.arange(length), len(signal) - 1)]
        quality[first:stop] = _judge(epochs, rate, middle, limits, thresholds)
    return quality


def _judge(
    epochs: NDArray[np.float32],
    rate: float,
    middle: float,
    limits: tuple[float, float] | None,
    thresholds: QualityLimits,
) -> NDArray[np.uint8]:
    """Bits of ``epochs`` [E, samples]."""
    bits = np.zeros(len(epochs), dtype=np.uint8)
    lowest, highest = epochs.min(axis=1), epochs.max(axis=1)
    if np.isnan(highest).any():
        gap = np.isnan(epochs)
        epochs = np.where(gap, np.float32(middle), epochs)
        lowest, highest = epochs.min(axis=1), epochs.max(axis=1)
        bits[gap.any(axis=1)] |= np.uint8(Quality.GAP)

    def share(low: float, high: float) -> NDArray[np.float64]:
        """Share of each epoch's samples at or below ``low`` or at or above ``high``; most epochs have none."""
        result = np.zeros(len(epochs))
        touched = (lowest <= low) | (highest >= high)
        if touched.any():
            result[touched] = ((epochs[touched] <= low) | (epochs[touched] >= high)).mean(axis=1)
        return result

    def mark(where: NDArray[np.bool_], flag: Quality) -> None:
        bits[where] |= np.uint8(flag)

    if thresholds.flat is not None:
        mark(_flat_share(epochs, rate, thresholds.flat) >= _FLAT_SHARE, Quality.FLAT)
    if limits is not None and limits[0] < limits[1]:
        # Half a step of the coarsest recorder in use, 8 bits.
        margin = (limits[1] - limits[0]) / 512
        mark(share(limits[0] + margin, limits[1] - margin) >= _CLIPPED_SHARE, Quality.CLIPPED)
    outside = np.zeros(len(epochs), dtype=bool)
    if thresholds.range is not None:
        outside = share(middle - thresholds.range, middle + thresholds.range) >= _RANGE_SHARE
        mark(outside, Quality.OUT_OF_RANGE)
    if thresholds.mains:
        mains = _mains_share(epochs, rate) >= _MAINS_SHARE
        mark(mains, Quality.MAINS)
        mark(mains & outside, Quality.DISCONNECTED)
    if thresholds.low is not None:
        off = (epochs < thresholds.low).mean(axis=1) >= _LOW_SHARE
        mark(off, Quality.DISCONNECTED)
    return bits


def _flat_share(epochs: NDArray[np.float32], rate: float, threshold: float) -> NDArray[np.float64]:
    """Share of the seconds of each epoch [E] that vary by at most ``threshold`` from peak to peak."""
    second = max(2, int(rate))
    seconds = epochs[:, : epochs.shape[1] // second * second].reshape(len(epochs), -1, second)
    if not seconds.size:
        return np.zeros(len(epochs))
    share: NDArray[np.float64] = (np.ptp(seconds, axis=2) <= threshold).mean(axis=1)
    return share


def _mains_share(epochs: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Share of the variance within the seconds of each epoch that is a sine of 50 or 60 Hz, the larger of both, [E].

    Each second is projected on a sine and a cosine, which takes in about 1 Hz to either side.
    """
    second = round(rate)
    tones = [mains for mains in _MAINS_HZ if mains + 1.0 < rate / 2]
    count = epochs.shape[1] // second if second else 0
    if not tones or not count:
        return np.zeros(len(epochs), dtype=np.float32)
    seconds = epochs[:, : count * second].reshape(-1, second)
    seconds = seconds - seconds.mean(axis=1, keepdims=True)
    phase = 2 * np.pi * np.outer(np.arange(second) / rate, tones)
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)
    projected = (seconds @ waves).reshape(len(epochs), count, 2, len(tones))
    power = np.square(projected).sum(axis=(1, 2)) * np.float32(2 / second)
    total = np.square(seconds).reshape(len(epochs), -1).sum(axis=1)
    share: NDArray[np.float32] = power.max(axis=1) / np.maximum(total, np.finfo(np.float32).tiny)
    return share
