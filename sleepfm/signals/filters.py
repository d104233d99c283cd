"""Whole-night resampling and filtering: one pass over the night, then cut, so that epochs have no edges.

Resampling is by the exact ratio of the rates; filters are linear-phase FIR as ``mne`` designs them by default
(Hamming window, transition bands of a quarter of the edge), applied without delay. Where the band ends before both
Nyquist frequencies, both are one pass: overlap-save blocks (Oppenheim and Schafer, Discrete-Time Signal Processing,
8.7) whose spectrum is cut at 50 Hz, or filled up to it, between the transforms; nothing folds back, since the filter
has stopped all beyond its upper transition band. A band that reaches the native Nyquist frequency takes two passes:
polyphase, then filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import RATE_HZ
from sleepfm.errors import SignalError
from sleepfm.signals.cohorts.catalogue import GENERIC, load_cohort
from sleepfm.signals.cohorts.cohort import Band
from sleepfm.signals.fir import band_filter, kaiser, low_pass

# Ratios of rates are exact up to this denominator; the error beyond is below 1e-8.
_LARGEST_DENOMINATOR = 10_000
# Held by sample and hold between readings, so that steps (a finger that comes off) do not ring.
STEPPED = ("SPO2",)
_CENTRE_SAMPLES = 8192
_QUARTILE_SAMPLES = 32_768
_QUARTILES = (0.25, 0.5, 0.75)
_PIECE_SAMPLES = 262_144
# Samples of a block at the higher of both rates, so that its transform stays in the cache, and of a batch of blocks.
_BLOCK_SAMPLES = 16_384
_BATCH_SAMPLES = 1_000_000


def preprocess(
    signal: NDArray[np.float32], rate: float, channel: str, band: Band | None = None, target: int = RATE_HZ
) -> NDArray[np.float32]:
    """A whole night at 100 Hz, or at a rate that divides it and holds the band, filtered without phase shift.

    Args:
        signal: [T] samples at ``rate`` Hz in the canonical unit; NaN in gaps.
        channel: canonical name; decides the default band and that oximetry is not filtered.
        band: pass band; by default the one in ``configs/cohorts/defaults.yaml``.
        target: rate of the result in Hz.

    Returns:
        [ceil(T * target / rate)] float32; gaps stay NaN, each piece between them is processed for itself.

    Raises:
        SignalError: not one-dimensional, empty, or without a positive rate.
    """
    if signal.ndim != 1 or not len(signal) or not rate > 0:
        raise SignalError(f"{channel}: expected samples [T] at a positive rate, found {signal.shape} at {rate} Hz")
    band = load_cohort(GENERIC).filters.get(channel, Band()) if band is None else band
    low, high = effective_band(band, rate)
    if target != RATE_HZ:
        at_once = channel in STEPPED or (high is not None and stop_edge(high) <= min(rate, target) / 2)
        # A piece behind a gap begins where it begins to within a sample: at 100 Hz, that is 10 ms.
        if not (at_once and np.isfinite(signal).all()):
            return preprocess(signal, rate, channel, band)[:: RATE_HZ // target]
    ratio = target / Fraction(rate).limit_denominator(_LARGEST_DENOMINATOR)
    ratio = ratio.limit_denominator(_LARGEST_DENOMINATOR)
    length = _ceil(len(signal) * ratio)
    result: NDArray[np.float32] | None = None
    for start, stop in finite_runs(signal):
        piece = signal[start:stop]
        if channel in STEPPED:
            resampled = _hold(piece, ratio)
        else:
            # Without its offset the piece starts near the zero that the resampler assumes before it.
            offset = centre(piece)
            if high is not None and stop_edge(high) <= rate / 2:
                resampled = _resample_and_filter(piece, offset, ratio, low, high, RATE_HZ // target)
            elif high is not None and ratio.denominator == 1:
                resampled = _fill_and_filter(piece - offset, ratio.numerator, low, high)
            else:
                # Imported here, as everywhere: it takes a second, which who lists a folder or plans a build need not wait.
                from scipy.signal import resample_poly

                resampled = resample_poly(piece - offset, ratio.numerator, ratio.denominator)
                resampled = resampled + offset if low is None else _filter(resampled, low, high)
        if stop - start == len(signal):  # no gaps, nothing to put together
            return resampled[:length].astype(np.float32, copy=False)
        if result is None:
            result = np.full(length, np.nan, dtype=np.float32)
        place, end = _ceil(start * ratio), _ceil(stop * ratio)
        result[place:end] = resampled[: end - place]
    return np.full(length, np.nan, dtype=np.float32) if result is None else result


def effective_band(band: Band, rate: float) -> tuple[float | None, float | None]:
    """Edges in Hz that a signal of ``rate`` Hz can carry: the upper one is at most its Nyquist frequency.

    Raises:
        SignalError: nothing is left between them.
    """
    high = band.high if band.high is None or band.high < rate / 2 else rate / 2
    if high is not None and band.low is not None and band.low >= high:
        raise SignalError(f"a rate of {rate:g} Hz is too low for the band {band.low:g} to {band.high:g} Hz")
    return band.low, high if high is None or high < RATE_HZ / 2 else None


def robust_scale(signal: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
    """``signal`` with median 0 and interquartile range 1, and the two that were taken out; NaN is left out.

    Raises:
        SignalError: no finite sample, or an interquartile range of 0 (flat for more than half of the night).
    """
    finite = signal if np.isfinite(signal).all() else signal[np.isfinite(signal)]
    if not len(finite):
        raise SignalError("has no finite sample")
    lower, median, upper = quartiles(finite)
    spread = upper - lower
    if not spread > 0:
        raise SignalError(f"flat: half of the samples are {median:g}")
    scaled = signal - np.float32(median)
    scaled /= np.float32(spread)
    return scaled, median, spread


def quartiles(signal: NDArray[np.float32]) -> tuple[float, float, float]:
    """The three quartiles of finite samples [T], linear between neighbours as in ``numpy.percentile``, and as exact.

    A sorted sample of the night brackets each quartile, so that only the few values inside the bracket are sorted.
    The night is gone through once, a piece that fits the processor's cache at a time.
    """
    few = np.sort(signal[:: max(1, len(signal) // _QUARTILE_SAMPLES)])
    slack = max(1, len(few) // 128)
    places = [int(share * (len(few) - 1)) for share in _QUARTILES]
    brackets = [(few[max(0, place - slack)], few[min(len(few) - 1, place + 1 + slack)]) for place in places]
    below = [0] * len(brackets)
    inside: list[list[NDArray[np.float32]]] = [[] for _ in brackets]
    # Masks that are used again: fresh memory costs more than the comparison.
    masks = np.empty((2, _PIECE_SAMPLES), dtype=bool)
    for begin in range(0, len(signal), _PIECE_SAMPLES):
        piece = signal[begin : begin + _PIECE_SAMPLES]
        above, within = masks[:, : len(piece)]
        for number, (low, high) in enumerate(brackets):
            np.greater_equal(piece, low, out=above)
            below[number] += len(piece) - int(np.count_nonzero(above))
            np.less_equal(piece, high, out=within)
            within &= above
            inside[number].append(piece.compress(within))
    found = [
        _quantile(signal, share, count, np.concatenate(parts))
        for share, count, parts in zip(_QUARTILES, below, inside, strict=True)
    ]
    return found[0], found[1], found[2]


def _quantile(signal: NDArray[np.float32], share: float, below: int, inside: NDArray[np.float32]) -> float:
    """A quantile of ``signal``, of which ``below`` samples lie under those of its bracket, ``inside``."""
    rank, weight = divmod(share * (len(signal) - 1), 1.0)
    first = int(rank) - below
    if first < 0 or first + 1 >= len(inside):
        return float(np.quantile(signal.astype(np.float64), share))
    inside = np.partition(inside, first)
    return float(inside[first]) * (1.0 - weight) + float(inside[first + 1 :].min()) * weight


def centre(signal: NDArray[np.float32]) -> np.float32:
    """The middle of a signal as a few thousand evenly spaced samples show it, NaN left out; 0 if none is finite."""
    few = signal[:: max(1, len(signal) // _CENTRE_SAMPLES)]
    few = few[np.isfinite(few)]
    return np.float32(np.median(few)) if len(few) else np.float32(0.0)


def finite_runs(signal: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Start and stop (exclusive) of every run without NaN."""
    finite = np.isfinite(signal)
    if finite.all():
        yield 0, len(signal)
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], finite, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


@lru_cache(maxsize=64)
def design(low: float | None, high: float | None) -> NDArray[np.float32]:
    """Taps of the symmetric FIR at 100 Hz, odd in number."""
    return band_filter(low, high, float(RATE_HZ)).astype(np.float32)


def stop_edge(high: float) -> float:
    """Where the upper transition band ends, Hz (``mne.filter.create_filter``, ``h_trans_bandwidth``)."""
    return high + min(max(0.25 * high, 2.0), RATE_HZ / 2 - high)


@lru_cache(maxsize=64)
def _taps(low: float | None, high: float, fill: int = 1) -> NDArray[np.float64]:
    """The filter at 100 Hz; with ``fill``, in one with what removes the images of a signal ``fill`` times as slow.

    The latter is the filter that ``scipy.signal.resample_poly`` designs by default (Kaiser window, beta 5).
    """
    taps = design(low, high).astype(np.float64)
    if fill == 1:
        return taps
    return np.convolve(taps, fill * low_pass(20 * fill + 1, 1 / fill, kaiser(5.0)))


@lru_cache(maxsize=64)
def _response(low: float | None, high: float, length: int, fill: int = 1) -> NDArray[np.float32]:
    """What the filter without its delay does to each bin of a spectrum of ``length`` samples at 100 Hz; real."""
    from scipy import fft

    taps = _taps(low, high, fill)
    centred = np.zeros(length)
    centred[: len(taps)] = taps
    return fft.rfft(np.roll(centred, -(len(taps) // 2))).real.astype(np.float32)


def _resample_and_filter(
    signal: NDArray[np.float32], offset: np.float32, ratio: Fraction, low: float | None, high: float, coarser: int = 1
) -> NDArray[np.float32]:
    """``signal`` [T] less ``offset``, filtered and at 100 / ``coarser`` Hz, [ceil(T * ratio)].

    A unit is the shortest stretch that holds whole samples at both rates: ``ratio.denominator`` of them before and
    ``ratio.numerator`` after. Blocks of units overlap by the filter's length, and only their middles are kept.
    """
    from scipy import fft

    before, after = ratio.denominator, ratio.numerator
    half = len(design(low, high)) // 2  # at 100 Hz
    margin = half // (after * coarser) + 1
    block = fft.next_fast_len(max(4 * margin, _BLOCK_SAMPLES // max(before, after)), real=True)
    step = block - 2 * margin
    # Odd reflection about the ends, and zeros where the signal is shorter than half the filter.
    reach = min(_ceil(half / (ratio * coarser)), len(signal) - 1)
    blocks = -(-len(signal) // (step * before))
    padded = np.zeros((blocks * step + 2 * margin) * before, dtype=np.float32)
    begin, end = margin * before, margin * before + len(signal)
    night = padded[begin:end]
    np.subtract(signal, offset, out=night)
    if reach:
        padded[begin - reach : begin] = 2 * night[0] - night[reach:0:-1]
        tail = (2 * night[-1] - night[-2 : -reach - 2 : -1])[: len(padded) - end]
        padded[end : end + len(tail)] = tail
    response = _response(low, high, block * after * coarser) * np.float32(after / before)
    bins = min(block * after // 2 + 1, block * before // 2 + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, block * before)[:: step * before]
    result = np.empty((blocks, step * after), dtype=np.float32)
    at_once = max(1, _BATCH_SAMPLES // (block * max(before, after)))
    for first in range(0, blocks, at_once):
        spectrum = fft.rfft(windows[first : first + at_once], axis=1)[:, :bins]
        spectrum *= response[:bins]
        middle = slice(margin * after, (block - margin) * after)
        result[first : first + at_once] = fft.irfft(spectrum, block * after, axis=1)[:, middle]
    return result.reshape(-1)[: _ceil(len(signal) * ratio)]


def _fill_and_filter(signal: NDArray[np.float32], fill: int, low: float | None, high: float) -> NDArray[np.float32]:
    """``signal`` [T] at 100 / ``fill`` Hz, zeros between its samples, filtered to [T * fill] at 100 Hz in one pass."""
    from scipy import fft

    half = len(_taps(low, high, fill)) // 2
    block = fft.next_fast_len(max(4 * half, _BLOCK_SAMPLES), real=True)
    step = block - 2 * half
    blocks = -(-len(signal) * fill // step)
    padded = np.zeros(blocks * step + 2 * half, dtype=np.float32)
    # Odd reflection about the ends, and zeros where the signal is shorter than half the filter.
    reach = min(half // fill, len(signal) - 1)
    head = 2 * signal[0] - signal[reach:0:-1]
    tail = 2 * signal[-1] - signal[-2 : -reach - 2 : -1]
    reflected = np.concatenate([head, signal, tail])
    place = padded[half - reach * fill :: fill]
    place[: len(reflected)] = reflected[: len(place)]
    response = _response(low, high, block, fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, block)[::step]
    result = np.empty((blocks, step), dtype=np.float32)
    at_once = max(1, _BATCH_SAMPLES // block)
    for first in range(0, blocks, at_once):
        spectrum = fft.rfft(windows[first : first + at_once], axis=1)
        spectrum *= response
        result[first : first + at_once] = fft.irfft(spectrum, block, axis=1)[:, half : half + step]
    return result.reshape(-1)[: len(signal) * fill]


def _filter(signal: NDArray[np.float32], low: float | None, high: float | None) -> NDArray[np.float32]:
    taps = design(low, high)
    half = len(taps) // 2
    # Odd reflection about the ends, and zeros where the signal is shorter than half the filter.
    reach = min(half, len(signal) - 1)
    padded = np.pad(signal, reach, mode="reflect", reflect_type="odd")
    padded = np.pad(padded, half - reach)
    from scipy.signal import oaconvolve

    return oaconvolve(padded, taps, mode="valid").astype(np.float32, copy=False)


def _hold(signal: NDArray[np.float32], ratio: Fraction) -> NDArray[np.float32]:
    """The reading in force at each 10-ms sample."""
    places = np.arange(_ceil(len(signal) * ratio)) * ratio.denominator // ratio.numerator
    return signal[np.minimum(places, len(signal) - 1)]


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
