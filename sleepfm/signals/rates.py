"""The rate at which a channel is stored, and the way back to the 100 Hz of models.

Flow and effort end at 1 Hz and oximetry is a reading a second: at 100 Hz they would be four tenths of all bytes. A channel whose
filter has ended by 3 Hz is stored at 10 Hz, every tenth of its samples. The way back is band-limited interpolation: a windowed
sinc through the stored samples (Kaiser window, Oppenheim and Schafer, Discrete-Time Signal Processing, 7.6), whose 16 taps reach
0.8 s into the neighbouring epochs, so that an epoch is the same read alone or with its night and has no seams. Oximetry, which is
held between its readings, is stored at 4 Hz and held again. Everything else is stored at 100 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, RATE_HZ
from sleepfm.signals.filters import STEPPED, stop_edge

SLOW_HZ = 10
HELD_HZ = 4
# Pass band of the interpolation; its stop band begins at 7 Hz, where the images of what lies below 3 Hz begin.
SLOW_BAND_HZ = 3.0

# Stored samples on each side of a point that its value is made of.
REACH = 8
_KAISER_BETA = 10.0
# Taps are multiples of this. Times an int16 they are exact in double precision, and so are their sums, in whatever order and on
# whatever processor: an epoch has the same bytes everywhere.
_TAP_STEP = 2.0**-24
_FACTOR = RATE_HZ // SLOW_HZ
_SLOW_SAMPLES = SLOW_HZ * EPOCH_SECONDS
# Stored samples that one row of the product stands for: few waste taps, many waste calls.
_BLOCK = 10


def stored_rate(channel: str, band: Sequence[float | None] | None) -> int:
    """Rate in Hz at which ``channel`` is stored.

    Args:
        band: edges in Hz of the filter that it has passed, None without one; None where the band is not known.
    """
    if band is None:
        return RATE_HZ
    if channel in STEPPED:
        return HELD_HZ
    high = band[1]
    return SLOW_HZ if high is not None and stop_edge(high) <= SLOW_BAND_HZ else RATE_HZ


def recording_rate(provenance: Mapping[str, Any], channel: str) -> int:
    """:func:`stored_rate` of a channel of a recording, by what is known of how it was made."""
    return stored_rate(channel, provenance.get("channels", {}).get(channel, {}).get("band"))


def thin_out(signal: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """``signal`` [T] at 100 Hz as it is stored at ``rate``: [T * rate / 100]."""
    return signal[:: RATE_HZ // rate]


def at_model_rate(signal: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """``signal`` of whole epochs [E * 30 * rate] at 100 Hz, [E * 3000]; of which :func:`thin_out` makes the same again."""
    if rate == RATE_HZ:
        return signal
    if rate == SLOW_HZ:
        return interpolate([(signal, 0)]).astype(np.float32).reshape(-1)
    return np.repeat(signal, RATE_HZ // rate)


@lru_cache(maxsize=1)
def _taps() -> NDArray[np.float64]:
    """What each stored sample around a block gives to each sample at 100 Hz of it, [10 + 16, 100]."""
    offset = np.arange(-REACH * _FACTOR, REACH * _FACTOR + 1) / _FACTOR  # in stored samples
    taps = np.sinc(offset) * np.i0(_KAISER_BETA * np.sqrt(1 - (offset / REACH) ** 2)) / np.i0(_KAISER_BETA)
    taps[np.isclose(offset, np.rint(offset))] = 0.0
    taps[len(taps) // 2] = 1.0
    # Each of the ten phases passes a constant as it is.
    matrix = np.zeros((_BLOCK + 2 * REACH, _BLOCK * _FACTOR))
    for point in range(_BLOCK * _FACTOR):
        sample, phase = divmod(point, _FACTOR)
        row = taps[REACH * _FACTOR + phase - np.arange(1 - REACH, REACH + 1) * _FACTOR]
        row = np.rint(row / row.sum() / _TAP_STEP) * _TAP_STEP
        matrix[sample + 1 : sample + 1 + 2 * REACH, point] = row
    return matrix


def interpolate(stretches: Sequence[tuple[NDArray[np.int16] | NDArray[np.float32], int]]) -> NDArray[np.float64]:
    """Samples at 10 Hz, or the steps that are stored of them, at 100 Hz: [E, 3000] for the epochs of all ``stretches`` in order.

    Args:
        stretches: consecutive stored epochs [S * 300] with their neighbours, and how they lie: 1 if the first is such a
            neighbour, 2 if the last is, 3 for both. Where there is none, the recording begins or ends: the signal goes on as
            its reflection about its last sample.
    """
    blocks = _SLOW_SAMPLES // _BLOCK
    epochs = [steps.size // _SLOW_SAMPLES - (sides & 1) - (sides >> 1) for steps, sides in stretches]
    rows = np.empty((sum(epochs) * blocks, _BLOCK + 2 * REACH))
    place = 0
    for (steps, sides), count in zip(stretches, epochs, strict=True):
        flat: NDArray[Any] = steps.reshape(-1)
        if sides != 3:
            flat = _continued(flat.astype(np.float64), sides)
        begin = (_SLOW_SAMPLES if sides & 1 else REACH) - REACH
        rows[place : place + count * blocks] = flat[begin + _windows(count)]
        place += count * blocks
    # An epoch at a time: larger products wake the threads of a BLAS, which costs more than it gives.
    return (rows.reshape(-1, blocks, rows.shape[1]) @ _taps()).reshape(-1, EPOCH_SECONDS * RATE_HZ)


@lru_cache(maxsize=64)
def _windows(epochs: int) -> NDArray[np.int64]:
    """Places of the samples that each block of ``epochs`` epochs is made of, [E * 30, 26]."""
    return np.arange(0, epochs * _SLOW_SAMPLES, _BLOCK)[:, None] + np.arange(_BLOCK + 2 * REACH)


def _continued(flat: NDArray[np.float64], sides: int) -> NDArray[np.float64]:
    parts = [flat]
    if not sides & 1:
        parts.insert(0, 2 * flat[0] - flat[REACH:0:-1])
    if not sides & 2:
        parts.append(2 * flat[-1] - flat[-2 : -REACH - 2 : -1])
    return np.concatenate(parts)


def hold(steps: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """Stored steps [E, 30 * rate], each held until the next: [E, 3000]."""
    return np.repeat(steps, RATE_HZ // rate, axis=1)
