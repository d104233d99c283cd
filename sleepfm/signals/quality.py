"""What is wrong with each epoch of a channel, and which stretches of it hold no signal of a person.

Raw samples are assessed before any filter (:func:`epoch_quality`), and what the filter leaves is assessed once more
(:func:`silent_epochs`): an open input that drifts, or that shows nothing but mains, is only seen to be empty in the band.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, RATE_HZ
from sleepfm.signals.cohorts.catalogue import GENERIC, load_cohort
from sleepfm.signals.cohorts.cohort import QualityLimits
from sleepfm.signals.filters import centre
from sleepfm.signals.mains import mains_share, pickup


class Quality(IntFlag):
    """Bits of an epoch's quality; 0 is good."""

    FLAT = 1
    CLIPPED = 2
    DISCONNECTED = 4
    MAINS = 8
    OUT_OF_RANGE = 16
    GAP = 32


# A channel with one of these in an epoch is absent there: from its scale, in training, in evaluation and in scoring.
UNUSABLE = Quality.FLAT | Quality.DISCONNECTED | Quality.GAP
# Of these, the epochs whose samples are not a person's; what a gap leaves of an epoch is.
_LIFELESS = Quality.FLAT | Quality.DISCONNECTED

# Samples of a second that are looked at first, where it may be flat.
_FEW = 8
# Shares of an epoch from which on a fault counts.
_FLAT_SHARE = 0.5
_CLIPPED_SHARE = 0.01
_RANGE_SHARE = 0.05
_LOW_SHARE = 0.1
_LOST_SHARE = 0.5
# A second or two missing says little; zeros for longer are like nothing a model has learnt, and spoil its context for minutes.
_GAP_SHARE = 0.1
# Share of the variance within a second that lies about the mains frequency.
_MAINS_SHARE = 0.5
# From this share on, mains of the strength `pickup` come from an open input: what else there is has a tenth of its amplitude.
_PICKUP_SHARE = 0.99
# Converter steps that the noise of an open input spans: one up, one down.
_OPEN_STEPS = 2.0
# Of such noise, with that of rounding, what any of our bands leaves: its standard deviation in steps is less.
_OPEN_DEVIATION = 0.7
# Mains of this share of the recorder's range are strong for it, however weak in uV: what saturates it is no more.
_PICKUP_RANGE = 0.25
# Share of a night's breathing (90th percentile of its epochs) below which, for `flat_epochs` in a row, there is none.
_BREATHING_SHARE = 0.02
_CHUNK_EPOCHS = 64
_MIDDLE_SECONDS = 512


def unusable(quality: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where ``quality`` says that the channel cannot be used, of the same shape."""
    return (quality & np.uint8(UNUSABLE)) > 0


def epoch_quality(
    signal: NDArray[np.float32],
    rate: float,
    channel: str,
    n_epochs: int,
    limits: tuple[float, float] | None = None,
    thresholds: QualityLimits | None = None,
    step: float = 0.0,
) -> NDArray[np.uint8]:
    """Bits of :class:`Quality` for each epoch, [E] uint8.

    Args:
        signal: [T] in the canonical unit at its native ``rate``, NaN in gaps.
        limits: the recorder's range in that unit; samples at either end are clipped.
        thresholds: limits of the channel, by default those in ``configs/cohorts/defaults.yaml``.
        step: of the recorder's converter in that unit, 0 where it is not known.

    FLAT: half of the seconds vary by no more than a threshold, or than an open input does (2 steps of the converter); of
    breathing, epochs in a row without amplitude, as in :func:`silent_epochs`. CLIPPED: 1 % of the samples at the recorder's
    limits. OUT_OF_RANGE: 5 % far from the middle of the seconds that are alive. DISCONNECTED: mains and out of range
    together, or half of the seconds hardly anything but strong mains, as from an electrode that came off; half of the
    samples at the limits, or quartiles as far apart as the range; in oximetry, 10 % below what a sensor on a finger shows.
    MAINS: most of the variance within a second at 50 or 60 Hz. GAP: a tenth of the samples are missing.
    """
    if thresholds is None:
        thresholds = load_cohort(GENERIC).quality.get(channel, QualityLimits())
    assess = _Assessment(signal, rate, limits, thresholds, step)
    quality = np.zeros(n_epochs, dtype=np.uint8)
    amplitude = np.full(n_epochs, np.inf, dtype=np.float32)
    length = max(1, int(EPOCH_SECONDS * rate))
    regular = length == EPOCH_SECONDS * rate and n_epochs * length <= len(signal)
    for first in range(0, n_epochs, _CHUNK_EPOCHS):
        stop = min(n_epochs, first + _CHUNK_EPOCHS)
        if regular:
            epochs = signal[first * length : stop * length].reshape(-1, length)
        else:
            starts = np.rint(np.arange(first, stop) * EPOCH_SECONDS * rate).astype(np.int64)
            epochs = signal[np.minimum(starts[:, None] + np.arange(length), len(signal) - 1)]
        quality[first:stop] = assess(epochs)
        if thresholds.flat_epochs > 1:
            amplitude[first:stop] = epochs.std(axis=1)
    if thresholds.flat_epochs > 1:
        quality &= ~np.uint8(Quality.FLAT)
        quality[_breathless(amplitude, thresholds, step)] |= np.uint8(Quality.FLAT)
    return quality


def silent_epochs(
    samples: NDArray[np.float32], thresholds: QualityLimits, step: float = 0.0, rate: int = RATE_HZ
) -> NDArray[np.bool_]:
    """Epochs [E] in which the filtered ``samples`` [E * 30 * rate], in the canonical unit, hold less than a person gives.

    Of brain, eyes, muscle and heart: half of the seconds have a standard deviation below ``thresholds.floor``, or below what
    an open input has. Of
    breathing, which may pause and has no unit: for ``flat_epochs`` in a row it stays below a step of the converter, or
    below a fiftieth of what it is in the night. Where samples are missing (NaN) an epoch is not silent.
    """
    seconds = samples.reshape(-1, EPOCH_SECONDS, rate)
    if thresholds.flat_epochs > 1:
        return _breathless(seconds.reshape(len(seconds), -1).std(axis=1), thresholds, step)
    if not thresholds.floor:
        return np.zeros(len(seconds), dtype=bool)
    return (_deviation(seconds) < max(thresholds.floor, _OPEN_DEVIATION * step)).mean(axis=1) >= _FLAT_SHARE


def missing_epochs(samples: NDArray[np.float32], rate: int = RATE_HZ) -> NDArray[np.bool_]:
    """Epochs [E] of whose ``samples`` [E * 30 * rate] a tenth is missing, not recorded or cut out beside dead stretches."""
    missing: NDArray[np.bool_] = np.isnan(samples).reshape(-1, EPOCH_SECONDS * rate).mean(axis=1) >= _GAP_SHARE
    return missing


def blank_lifeless(
    signal: NDArray[np.float32],
    rate: float,
    quality: NDArray[np.uint8],
    limits: tuple[float, float] | None,
    thresholds: QualityLimits,
    step: float = 0.0,
) -> bool:
    """Make the stretches of ``signal`` [T] that are no person's gaps (NaN), in place; returns whether there are any.

    A filter then sees neither their offset nor the step at their border. Besides epochs with FLAT or DISCONNECTED in
    ``quality`` [E] these are the seconds beside them that are like them, a second at the border, in which the stretch
    may begin or end, and the like after the last whole epoch.
    """
    lost = np.repeat((quality & np.uint8(_LIFELESS)) > 0, EPOCH_SECONDS)
    assess = _Assessment(signal, rate, limits, thresholds, step)
    length = max(2, int(rate))
    total = int(len(signal) // rate) if len(signal) >= length else 0
    if not lost.any() and total <= len(lost):
        return False
    dead = np.zeros(max(total, len(lost)), dtype=bool)
    rest = 0 if lost.any() else len(lost)
    for first in range(rest, total, EPOCH_SECONDS * _CHUNK_EPOCHS):
        starts = np.rint(np.arange(first, min(total, first + EPOCH_SECONDS * _CHUNK_EPOCHS)) * rate).astype(np.int64)
        rows = signal[np.minimum(starts[:, None] + np.arange(length), len(signal) - 1)]
        dead[first : first + len(rows)] = (assess(rows) & np.uint8(_LIFELESS)) > 0
    dead[: len(lost)] |= lost
    dead[len(lost) :] &= thresholds.flat_epochs == 1
    found = False
    for first, stop in _runs(dead):
        if stop > len(lost) or lost[first:stop].any():
            found = True
            begin, end = (first - 1) * rate, (stop + 1) * rate
            signal[max(0, int(np.rint(begin))) : len(signal) if stop >= total else int(np.rint(end))] = np.nan
    return found


class _Assessment:
    """Bits of rows [N, samples] of one channel, epochs or seconds."""

    def __init__(
        self,
        signal: NDArray[np.float32],
        rate: float,
        limits: tuple[float, float] | None,
        thresholds: QualityLimits,
        step: float,
    ) -> None:
        self._rate, self._thresholds = rate, thresholds
        flat = thresholds.flat
        # A little more than the steps, for they are differences of rounded numbers.
        self._flat = None if flat is None else max(flat, 1.01 * _OPEN_STEPS * step)
        self._limits = limits if limits is not None and limits[0] < limits[1] else None
        self._middle = self._alive_middle(signal)

    def _clipping(self) -> tuple[float, float] | None:
        """Values at or beyond which a sample is at the recorder's limits."""
        if self._limits is None:
            return None
        # Half a step of the coarsest recorder in use, 8 bits.
        margin = (self._limits[1] - self._limits[0]) / 512
        return self._limits[0] + margin, self._limits[1] - margin

    def _alive_middle(self, signal: NDArray[np.float32]) -> float:
        """The middle of evenly spaced seconds that are neither flat nor clipped nor mains; of all, if there are none.

        So it stays where it is when most of a night is dead at another offset.
        """
        second = max(2, int(self._rate))
        if self._thresholds.range is None or len(signal) < second:
            return float(centre(signal))
        starts = np.linspace(0, len(signal) - second, min(_MIDDLE_SECONDS, len(signal) // second)).astype(np.int64)
        seconds = signal[starts[:, None] + np.arange(second)]
        seconds = seconds[np.isfinite(seconds).all(axis=1)]
        alive = np.ptp(seconds, axis=1) > (self._flat or 0.0)
        ends = self._clipping()
        if ends is not None:
            alive &= ((seconds <= ends[0]) | (seconds >= ends[1])).mean(axis=1) < _LOST_SHARE
        alive &= mains_share(seconds, self._rate) < _MAINS_SHARE
        return float(np.median(np.median(seconds[alive], axis=1))) if alive.any() else float(centre(signal))

    def __call__(self, epochs: NDArray[np.float32]) -> NDArray[np.uint8]:
        rate, thresholds, middle = self._rate, self._thresholds, self._middle
        bits = np.zeros(len(epochs), dtype=np.uint8)
        lowest, highest = epochs.min(axis=1), epochs.max(axis=1)
        gap: NDArray[np.bool_] | None = None
        if np.isnan(highest).any():
            gap = np.isnan(epochs)
            epochs = np.where(gap, np.float32(middle), epochs)
            lowest, highest = epochs.min(axis=1), epochs.max(axis=1)
            bits[gap.mean(axis=1) >= _GAP_SHARE] |= np.uint8(Quality.GAP)

        def share(low: float, high: float) -> NDArray[np.float64]:
            """Share of each epoch's samples at or below ``low`` or at or above ``high``; most epochs have none."""
            result = np.zeros(len(epochs))
            touched = (lowest <= low) | (highest >= high)
            if touched.any():
                result[touched] = ((epochs[touched] <= low) | (epochs[touched] >= high)).mean(axis=1)
            return result

        def mark(where: NDArray[np.bool_], flag: Quality) -> None:
            bits[where] |= np.uint8(flag)

        if self._flat is not None:
            mark(_flat_share(epochs, rate, self._flat, gap) >= _FLAT_SHARE, Quality.FLAT)
        ends = self._clipping()
        if ends is not None:
            clipped = share(*ends)
            mark(clipped >= _CLIPPED_SHARE, Quality.CLIPPED)
            if thresholds.range is not None:
                mark(clipped >= _LOST_SHARE, Quality.DISCONNECTED)
        outside = np.zeros(len(epochs), dtype=bool)
        if thresholds.range is not None:
            outside = share(middle - thresholds.range, middle + thresholds.range) >= _RANGE_SHARE
            mark(outside, Quality.OUT_OF_RANGE)
            wide = np.flatnonzero(highest - lowest >= thresholds.range)
            if len(wide):
                quarter, three_quarters = np.percentile(epochs[wide], [25, 75], axis=1)
                bits[wide[three_quarters - quarter >= thresholds.range]] |= np.uint8(Quality.DISCONNECTED)
        if thresholds.mains:
            mains = mains_share(epochs, rate) >= _MAINS_SHARE
            mark(mains, Quality.MAINS)
            mark(mains & outside, Quality.DISCONNECTED)
            if thresholds.pickup is not None and mains.any():
                share_of_all, strength = pickup(epochs[mains], rate)
                span = self._limits[1] - self._limits[0] if self._limits is not None else np.inf
                only = (share_of_all >= _PICKUP_SHARE) & (strength >= min(thresholds.pickup, _PICKUP_RANGE * span))
                bits[np.flatnonzero(mains)[only.mean(axis=1) >= _LOST_SHARE]] |= np.uint8(Quality.DISCONNECTED)
        if thresholds.low is not None:
            off = (epochs < thresholds.low).mean(axis=1) >= _LOW_SHARE
            mark(off, Quality.DISCONNECTED)
        return bits


def _deviation(seconds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation along the last axis, in one pass; what is filtered has no offset that would spoil it."""
    power = np.einsum("...i,...i->...", seconds, seconds) / np.float32(seconds.shape[-1])
    deviation: NDArray[np.float32] = np.sqrt(np.maximum(power - np.square(seconds.mean(axis=-1)), 0.0))
    return deviation


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and stop (exclusive) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _breathless(amplitude: NDArray[np.float32], thresholds: QualityLimits, step: float) -> NDArray[np.bool_]:
    """Epochs [E], ``flat_epochs`` in a row, whose ``amplitude`` (standard deviation) is nothing beside that of the night."""
    known = amplitude[np.isfinite(amplitude)]
    if not len(known):
        return np.zeros(len(amplitude), dtype=bool)
    floor = max(thresholds.floor, step, _BREATHING_SHARE * float(np.percentile(known, 90)))
    return _in_a_row(amplitude < floor, thresholds.flat_epochs)


def _in_a_row(flags: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """``flags`` without the runs of true values that are shorter than ``least`` and than the whole."""
    kept = np.zeros_like(flags)
    for first, stop in _runs(flags):
        kept[first:stop] = stop - first >= min(least, len(flags))
    return kept


def _flat_share(
    epochs: NDArray[np.float32], rate: float, threshold: float, gap: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Share of the seconds of each epoch [E] that vary by at most ``threshold`` from peak to peak, of those that are not
    wholly missing (``gap`` [E, samples]).
    """
    second = max(2, int(rate))
    whole = epochs.shape[1] // second * second
    if not whole:
        return np.zeros(len(epochs))
    seconds = epochs[:, :whole].reshape(len(epochs), -1, second)
    # A second that varies by more in a few of its samples is not flat: nearly every one. Samples first, which is quicker.
    few = np.ascontiguousarray(np.moveaxis(seconds[..., :: max(1, second // _FEW)], 2, 0))
    flat = ~(np.ptp(few, axis=0) > threshold)
    doubtful = flat.any(axis=1)
    flat[doubtful] = np.ptp(seconds[doubtful], axis=2) <= threshold
    if gap is None:
        share: NDArray[np.float64] = flat.mean(axis=1)
        return share
    recorded = ~gap[:, :whole].reshape(len(epochs), -1, second).all(axis=2)
    return (flat & recorded).sum(axis=1) / np.maximum(recorded.sum(axis=1), 1)
