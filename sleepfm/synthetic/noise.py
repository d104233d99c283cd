"""Random processes shared by all signals: coloured noise, slow fluctuations, and linear interpolation on
fixed grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter

Floats = NDArray[np.float32]


def band_noise(
    rng: np.random.Generator,
    n: int,
    rate: float,
    low: float,
    high: float,
    shape: Callable[[Floats], Floats] | None = None,
) -> Floats:
    """Gaussian noise [n] of unit variance at ``rate`` Hz with power only in ``low``..``high`` Hz.

    ``shape`` gives the relative amplitude at frequencies in Hz; flat if None.
    """
    length = fft.next_fast_len(n, real=True)
    first, last = max(1, int(low * length / rate)), min(length // 2, int(high * length / rate) + 1)
    spectrum = np.zeros(length // 2 + 1, dtype=np.complex64)
    bins = spectrum[first:last]
    rng.standard_normal(out=spectrum.view(np.float32)[2 * first : 2 * last], dtype=np.float32)
    if shape is not None:
        bins *= shape(np.arange(first, last, dtype=np.float32) * np.float32(rate / length))
    bins *= np.float32(length / np.sqrt(2.0 * float(np.vdot(bins, bins).real)))
    return fft.irfft(spectrum, length, overwrite_x=True)[:n]


def peak(centre: float, width: float) -> Callable[[Floats], Floats]:
    """A Gaussian spectral peak in Hz, for :func:`band_noise`."""
    return lambda f: np.exp(-0.5 * ((f - centre) / width) ** 2)


def power_law(exponent: float, knee: float = 0.5) -> Callable[[Floats], Floats]:
    """Amplitude of a background whose power falls as 1/f^``exponent`` above ``knee`` Hz, for
    :func:`band_noise`."""
    return lambda f: (knee * knee + f * f) ** np.float32(-exponent / 4)


def drift(rng: np.random.Generator, n: int, steps: float) -> Floats:
    """First-order autoregressive noise [n] of unit variance with a memory of ``steps`` samples."""
    decay = float(np.exp(-1.0 / steps))
    white = rng.standard_normal(n)
    white[0] /= np.sqrt(1.0 - decay * decay)
    return lfilter([np.sqrt(1.0 - decay * decay)], [1.0, -decay], white).astype(np.float32)


def upsample(values: NDArray[np.floating], factor: int) -> Floats:
    """Linear interpolation of ``values`` [N], each at the middle of its step, to [N * factor]."""
    padded = np.concatenate([values[:1], values, values[-1:]]).astype(np.float32)
    weight = ((np.arange(factor) + 0.5) / factor).astype(np.float32)
    ramp = np.diff(padded)[:, None] * weight  # [N + 1, factor], from the middle of one step to that of the next
    ramp += padded[:-1, None]
    half = factor // 2
    flat: Floats = ramp.reshape(-1)
    return flat[factor - half : factor - half + len(values) * factor]


def add_at(signal: Floats, start: int, wave: Floats) -> None:
    """Add ``wave`` to ``signal`` from sample ``start`` on, in place; what falls outside is cut."""
    low, high = max(start, 0), min(start + len(wave), len(signal))
    if low < high:
        signal[low:high] += wave[low - start : high - start]
