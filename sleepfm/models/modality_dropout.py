"""Modalities and channels that are left out in training, so that a model learns to do without them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY

_NEVER_LOWEST = 2.0


def drop_modalities(present: Tensor, draws: Tensor, channels: Sequence[str], chance: float, kept: Collection[str] = ()) -> Tensor:
    """``present`` ``[..., C]`` of ``channels``, less the modalities whose draw is below ``chance``.

    A modality's draw is that of its first channel in ``draws`` (uniform in 0 to 1, of a shape that broadcasts to that of
    ``present``). Modalities in ``kept`` stay, and of the present ones that with the highest draw.
    """
    modalities = [CHANNEL_MODALITY[name] for name in channels]
    columns = [draws[..., modalities.index(name)] for name in modalities]
    own = torch.stack(
        [torch.full_like(draw, _NEVER_LOWEST) if name in kept else draw for name, draw in zip(modalities, columns, strict=True)],
        dim=-1,
    )
    highest = torch.where(present, own, -1.0).amax(-1, keepdim=True)
    return present & ((own >= chance) | (own == highest))


def drop_channels(present: Tensor, draws: Tensor, channels: Sequence[str], chance: float) -> Tensor:
    """``present`` ``[..., C]`` of ``channels``, less those whose draw in ``draws`` is below ``chance``.

    Of each modality's present channels that with the highest draw stays. Shapes as in :func:`drop_modalities`.
    """
    modalities = [CHANNEL_MODALITY[name] for name in channels]
    rivals = torch.tensor([[one == other for other in modalities] for one in modalities], device=draws.device)  # [C, C]
    own = torch.where(present, draws, -1.0)
    highest = torch.where(rivals, own[..., None, :], -1.0).amax(-1)
    return present & ((draws >= chance) | (own == highest))
