"""Fixed sin-cos position embeddings of frame tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Position = Literal["reference", "1d"]


def sincos(length: int, dim: int, kind: Position) -> Tensor:
    """Position embedding ``[length, dim]``.

    ``1d`` gives every feature pair its own frequency (arXiv 1706.03762). ``reference`` is MAE's
    two-dimensional embedding on a grid of ``length`` rows and one column, as in the released code: the first
    half of the features is constant.
    """
    steps = torch.arange(length, dtype=torch.float64)
    if kind == "1d":
        return _sincos(steps, dim).float()
    return torch.cat([_sincos(torch.zeros_like(steps), dim // 2), _sincos(steps, dim // 2)], dim=1).float()


def _sincos(position: Tensor, dim: int) -> Tensor:
    frequency = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
