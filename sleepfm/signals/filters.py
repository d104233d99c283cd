"""Whole-night processing of one channel: resampling to 100 Hz, zero-phase filtering, robust scaling.

The night is processed whole and cut afterwards: per-epoch filtering distorts the first and last second of every epoch.
Gaps (NaN) split the night into pieces that are processed by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import oaconvolve, resample_poly

from sleepfm.constants import RATE_HZ
from sleepfm.signals.cohort import Band

Signal = NDArray[np.float32]


def preprocess(x: Signal, rate: float, band: Band | None) -> Signal:
    """Resample ``x`` ``[T]`` from ``rate`` to 100 Hz and pass ``band`` with zero phase; NaN stays NaN.

    Without a band (SpO2) nothing is filtered and samples are joined by lines, since a percentage must not ring.
    """
    out = np.full(round(len(x) * RATE_HZ / rate), np.nan, np.float32)
    for first, last in _pieces(x):
        piece = _process(x[first:last], rate, band)
        start = round(first * RATE_HZ / rate)
        piece = piece[: len(out) - start]
        out[start : start + len(piece)] = piece
    return out


def robust_scale(x: Signal) -> tuple[Signal, float, float]:
    """``(x - median) / IQR`` over all finite samples, with median and IQR; without spread it comes back zero."""
    finite = x[np.isfinite(x)]
    if len(finite) == 0:
        return np.zeros_like(x), 0.0, 0.0
    low, median, high = (float(v) for v in np.percentile(finite, (25, 50, 75)))
    if high == low:
        return np.zeros_like(x), median, 0.0
    return ((x - np.float32(median)) / np.float32(high - low)).astype(np.float32), median, high - low


def _process(x: Signal, rate: float, band: Band | None) -> Signal:
    if band is None:
        wanted = np.arange(round(len(x) * RATE_HZ / rate)) / RATE_HZ
        return np.interp(wanted, np.arange(len(x)) / rate, x).astype(np.float32)
    ratio = Fraction(RATE_HZ / rate).limit_denominator(10_000)
    y = resample_poly(x, ratio.numerator, ratio.denominator, padtype="line") if ratio != 1 else x
    return _zero_phase(np.asarray(y, np.float32), band, rate)


def _zero_phase(x: Signal, band: Band, rate: float) -> Signal:
    # A signal sampled below twice the upper edge has nothing there to remove.
    high = band.high if band.high < rate / 2 else None
    taps = design(band.low, high)
    half = len(taps) // 2
    reach = min(half, len(x) - 1)
    # Odd reflection keeps level and slope across the ends of the night; zeros beyond it where the night is very short.
    ends = np.pad(np.pad(x, reach, "reflect", reflect_type="odd"), half - reach)
    return oaconvolve(ends, taps, mode="valid").astype(np.float32)


@lru_cache(maxsize=32)
def design(low: float, high: float | None) -> NDArray[np.float32]:
    """Symmetric FIR taps of odd length for 100 Hz, designed by MNE (Hamming window, its default transition bands)."""
    from mne.filter import create_filter

    taps = create_filter(None, RATE_HZ, low, high, fir_design="firwin", phase="zero", verbose="ERROR")
    return np.asarray(taps, np.float32)


def _pieces(x: Signal) -> Iterator[tuple[int, int]]:
    """First and end index of every run of finite samples."""
    finite = np.isfinite(x)
    if finite.all():
        if len(x):
            yield 0, len(x)
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], finite, [False])).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        yield int(first), int(last)
