"""Samples as the integers that shards hold, and back; the scales are those of :mod:`sleepfm.data.format`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS
from sleepfm.data.format import CHANNEL_SCALE, INT16_MAX

# A piece at a time stays in the processor's cache.
PIECE_SAMPLES = 1 << 16
_SCALES = np.array([CHANNEL_SCALE[channel] for channel in CHANNELS], np.float32)


def quantise(channel: str, signal: NDArray[np.float32]) -> NDArray[np.int16]:
    """``signal`` [T] as int16 in the steps of ``channel``; what lies outside is clipped to the largest step."""
    result = np.empty(signal.shape, "<i2")
    factor = np.float32(1 / CHANNEL_SCALE[channel])
    for begin in range(0, len(signal), PIECE_SAMPLES):
        steps = signal[begin : begin + PIECE_SAMPLES] * factor
        np.rint(steps, out=steps)
        np.clip(steps, -INT16_MAX, INT16_MAX, out=steps)
        result[begin : begin + PIECE_SAMPLES] = steps
    return result


def dequantise(channel: str, steps: NDArray[np.int16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The signal that ``steps`` of ``channel`` stand for, of their shape; in ``out`` where that is given."""
    return np.multiply(steps, np.float32(CHANNEL_SCALE[channel]), out=out, dtype=np.float32)


def scales_of(channels: NDArray[np.int64]) -> NDArray[np.float32]:
    """The scale of each of ``channels`` [N], numbers of :data:`sleepfm.constants.CHANNELS`."""
    return _SCALES[channels]
