"""Named channels to the tensors that models take, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.errors import ModelError


def stack_channels(signals: Mapping[str, Tensor], channels: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """``{channel: [B, T]}`` of any subset of ``channels`` to signals ``[B, P, T]``, presence ``[B, P]`` and the names of these
    ``P``, in the order of ``channels``.

    Raises:
        ModelError: no channel, one that the model does not know, another shape than ``[B, 3000]``, or
            values that are not finite.
    """
    unknown = [name for name in signals if name not in channels]
    if unknown or not signals:
        found = f"unknown channels {', '.join(unknown)}" if unknown else "no channel"
        raise ModelError(f"{found}; this model takes any of {', '.join(channels)}")
    batch = next(iter(signals.values())).shape[0]
    for name, signal in signals.items():
        if tuple(signal.shape) != (batch, EPOCH_SAMPLES):
            expected = f"[{batch}, {EPOCH_SAMPLES}] (30 s at 100 Hz)"
            raise ModelError(f"channel {name}: expected {expected}, found {list(signal.shape)}")
        if not signal.isfinite().all():
            raise ModelError(f"channel {name}: values that are not finite; give such epochs as absent")
    given = [name for name in channels if name in signals]
    stacked = torch.stack([signals[name] for name in given], dim=1)
    return stacked, torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device), given


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


def check_signals(signals: Tensor, present: Tensor, channels: Sequence[str]) -> None:
    """Shapes ``[B, C, T]`` and ``[B, C]``. Raises :class:`ModelError`."""
    expected = (len(channels), EPOCH_SAMPLES)
    if signals.ndim != 3 or tuple(signals.shape[1:]) != expected or signals.shape[:2] != present.shape:
        raise ModelError(
            f"expected signals [B, {expected[0]}, {expected[1]}] and presence [B, {expected[0]}] for channels "
            f"{', '.join(channels)}, found {list(signals.shape)} and {list(present.shape)}"
        )
