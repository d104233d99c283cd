"""Overlapping frames of an epoch."""

from __future__ import annotations

from torch import Tensor

from sleepfm.constants import RATE_HZ
from sleepfm.errors import ModelError


def samples(seconds: float) -> int:
    """Whole samples in ``seconds``, rounded down as the released code does (0.375 s are 37 samples)."""
    return int(seconds * RATE_HZ)


def frame_count(length: int, window: int, step: int) -> int:
    """Whole frames of ``window`` samples every ``step`` samples in ``length``.

    Raises:
        ModelError: not one frame fits.
    """
    if step < 1 or not 1 <= window <= length:
        raise ModelError(f"frames of {window} samples every {step} do not fit {length} samples")
    return (length - window) // step + 1


def frames(x: Tensor, window: int, step: int) -> Tensor:
    """``[B, T] -> [B, F, window]``; samples after the last whole frame are dropped.

    Raises:
        ModelError: not ``[B, T]``, or not one frame fits.
    """
    if x.ndim != 2:
        raise ModelError(f"expected signals [B, T], found {list(x.shape)}")
    frame_count(x.shape[1], window, step)
    return x.unfold(1, window, step)
