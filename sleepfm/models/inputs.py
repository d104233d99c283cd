"""Named channels to the tensors that models take, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.errors import ModelError

# A NumPy array or a tensor of floats.
FloatArray = Tensor | NDArray[np.floating]


def stack_channels(
    signals: Mapping[str, FloatArray], channels: Sequence[str], like: Tensor | None = None
) -> tuple[Tensor, Tensor, list[str]]:
    """``{channel: [B, T]}`` of any subset of ``channels`` to signals ``[B, P, T]``, presence ``[B, P]`` and the names of these
    ``P``, in the order of ``channels``.

    Args:
        signals: arrays or tensors of any float type.
        like: has the type and the device of what is given back; fp32 on the CPU without.

    Raises:
        ModelError: no channel, one that the model does not know, no floats, another shape than ``[B, 3000]``, or
            values that are not finite.
    """
    unknown = [name for name in signals if name not in channels]
    if unknown or not signals:
        found = f"unknown channels {', '.join(map(str, unknown))}" if unknown else "no channel"
        raise ModelError(f"signals: {found}; this model takes any of {', '.join(channels)}")
    given = [name for name in channels if name in signals]
    rows = [_floats(name, signals[name], like) for name in given]
    batch = len(rows[0])
    for name, row in zip(given, rows, strict=True):
        if tuple(row.shape) != (batch, EPOCH_SAMPLES):
            first = f", as many epochs as signals[{given[0]!r}]" if row.ndim == 2 and len(row) != batch else ""
            raise ModelError(
                f"signals[{name!r}]: expected [B, {EPOCH_SAMPLES}] (B epochs of 30 s at 100 Hz{first}), found {list(row.shape)}"
            )
        if not row.isfinite().all():
            raise ModelError(f"signals[{name!r}]: values that are not finite; leave such epochs out")
    stacked = torch.stack(rows, dim=1)
    return stacked, torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device), given


def _floats(name: str, values: FloatArray, like: Tensor | None) -> Tensor:
    """``values`` of the channel ``name`` as a tensor. Raises :class:`ModelError`."""
    dtype = torch.float32 if like is None else like.dtype
    array = values if isinstance(values, Tensor) else np.asarray(values)
    if not (array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"):
        raise ModelError(
            f"signals[{name!r}]: expected floats, robust-scaled (median 0, interquartile range 1), found {array.dtype}"
        )
    if not isinstance(array, Tensor):
        # A copy of torch's own, which may be written to and has this machine's order of bytes.
        array = torch.from_numpy(array.astype(np.float64 if dtype == torch.float64 else np.float32))
    if array.ndim == 0:
        raise ModelError(f"signals[{name!r}]: expected [B, {EPOCH_SAMPLES}], found one number")
    return array.to("cpu" if like is None else like.device, dtype)


def held_channels(signals: Tensor, present: Tensor, channels: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """Of signals ``[B, C, T]`` and presence ``[B, C]`` on the host, those of the channels that some row holds, and their names;
    the first channel where no row holds any.

    A model computes every channel that it is given for every row, so one that a recording lacks is left out before.
    """
    held = present.any(0).tolist()
    places = [place for place, there in enumerate(held) if there] or [0]
    if len(places) == len(channels):
        return signals, present, list(channels)
    return signals[:, places], present[:, places], [channels[place] for place in places]


def is_countable(present: Tensor) -> bool:
    """Whether it costs nothing to ask how many rows are present: of a tensor on the host, which nobody compiles or traces."""
    return type(present) is Tensor and present.device.type == "cpu" and not torch.compiler.is_compiling()


def check_signals(signals: Tensor, present: Tensor, channels: Sequence[str]) -> None:
    """Shapes ``[B, C, T]`` and ``[B, C]``. Raises :class:`ModelError`."""
    expected = (len(channels), EPOCH_SAMPLES)
    if signals.ndim != 3 or tuple(signals.shape[1:]) != expected or signals.shape[:2] != present.shape:
        raise ModelError(
            f"expected signals [B, {expected[0]}, {expected[1]}] and presence [B, {expected[0]}] for channels "
            f"{', '.join(channels)}, found {list(signals.shape)} and {list(present.shape)}"
        )
