"""Linear-phase FIR filters by the window method, tap for tap those of ``mne`` and SciPy.

``mne.filter.create_filter`` with its defaults is the reference (Hamming window, transition bands of a quarter of the edge and at
least 2 Hz), and ``scipy.signal.firwin`` below it. Importing these two takes two seconds, half of which scoring a night would wait
for; the tests hold what is computed here equal to them, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Taps of a Hamming window that a transition band of the whole rate needs (``mne.filter._length_factors``).
_HAMMING_LENGTH = 3.3
_LEAST_TRANSITION = 2.0

Window = Callable[[int], NDArray[np.float64]]


def hamming(length: int) -> NDArray[np.float64]:
    """The symmetric Hamming window [length]."""
    phase = np.linspace(-np.pi, np.pi, length)
    # In SciPy's order: a sum of cosines, of which the first is 1.
    return 0.54 * np.cos(0 * phase) + (1.0 - 0.54) * np.cos(1 * phase)


def kaiser(beta: float) -> Window:
    """The symmetric Kaiser window of ``beta``."""

    def window(length: int) -> NDArray[np.float64]:
        from scipy.special import i0

        middle = (length - 1) / 2.0
        away = (np.arange(0, length, dtype=np.float64) - middle) / middle
        return np.asarray(i0(beta * np.sqrt(1 - away**2.0)) / i0(np.asarray(beta, dtype=np.float64)))

    return window


def low_pass(length: int, cutoff: float, window: Window = hamming) -> NDArray[np.float64]:
    """Taps [length] of a low pass with gain 1 at 0 Hz, as ``scipy.signal.firwin``; ``cutoff`` is a share of Nyquist's."""
    place = np.arange(0, length, dtype=np.float64) - 0.5 * (length - 1)
    taps: NDArray[np.float64] = cutoff * np.sinc(cutoff * place)
    taps = taps * window(length)
    return taps / np.sum(taps)


def band_filter(low: float | None, high: float | None, rate: float) -> NDArray[np.float64]:
    """Taps, odd in number, that pass the band from ``low`` to ``high`` Hz at ``rate`` Hz (``mne.filter.create_filter``).

    Raises:
        ValueError: an edge that is not above 0 and below the Nyquist frequency.
    """
    nyquist = rate / 2.0
    for edge in (low, high):
        if edge is not None and not 0 < edge < nyquist:
            raise ValueError(f"an edge of {edge:g} Hz is not between 0 and {nyquist:g} Hz")
    # Corners in Hz with their gains, from 0 to the Nyquist frequency.
    corners: list[tuple[float, int]] = []
    widths = []
    if low is not None:
        widths.append(min(max(0.25 * low, _LEAST_TRANSITION), low))
        corners += [(low - widths[-1], 0), (low, 1)]
    if high is not None:
        widths.append(min(max(0.25 * high, _LEAST_TRANSITION), nyquist - high))
        corners += [(high, 1), (high + widths[-1], 0)]
    if not corners or corners[0][0] != 0:
        corners.insert(0, (0.0, corners[0][1] if corners else 1))
    if corners[-1][0] != nyquist:
        corners.append((nyquist, corners[-1][1]))
    length = _odd(math.ceil(_HAMMING_LENGTH / min(widths) * rate)) if widths else 1
    taps = np.zeros(length)
    frequency = np.array([corner for corner, _ in corners]) / nyquist
    gain = [gain for _, gain in corners]
    if gain[-1] == 1:
        taps[length // 2] = 1
    # From the top down, each transition adds or takes away a low pass.
    for number in range(len(gain) - 1, 0, -1):
        upper, lower = float(frequency[number]), float(frequency[number - 1])
        if gain[number] == gain[number - 1]:
            continue
        mine = low_pass(_odd(round(_HAMMING_LENGTH / ((upper - lower) / 2.0))), (upper + lower) / 2.0)
        begin = (length - len(mine)) // 2
        part = taps[begin : length - begin]
        if gain[number - 1] == 0:
            part -= mine
        else:
            part += mine
    return taps


def _odd(length: int) -> int:
    return length + 1 - length % 2
