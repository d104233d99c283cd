"""Temporal context over consecutive epochs: what an epoch's neighbours say about it.

SynthSleepNet's temporal context module is ``z + Mamba2(z)`` on batch-normalised embeddings (paper, section on the temporal
context module). LSTM, attention and no context are here for the ablation; all see the same sequence and nothing of other
sequences in the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.models.mamba import mamba2
from sleepfm.models.normalisation import RowBatchNorm


class ContextConfig(Config):
    """Which context, how deep, and whether it may look ahead."""

    kind: Literal["none", "mamba", "lstm", "attention"] = "mamba"
    layers: int = Field(1, ge=1)
    bidirectional: bool = False
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    heads: int = 8


def build_context(config: ContextConfig, dim: int) -> nn.Module:
    """A module ``[B, L, dim] -> [B, L, dim]`` for any length ``L``."""
    if config.kind == "none":
        return nn.Identity()
    layer = {"mamba": _Mamba, "lstm": _Lstm, "attention": _Attention}[config.kind]
    return nn.Sequential(_SequenceNorm(dim), *(Residual(layer(dim, config)) for _ in range(config.layers)))


class _SequenceNorm(nn.Module):
    """Batch normalisation of every feature over all epochs of the batch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RowBatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Residual(nn.Module):
    """``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class _Mamba(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        sizes = (dim, config.d_state, config.d_conv, config.expand, config.headdim)
        self.forwards = mamba2(*sizes)
        self.backwards = mamba2(*sizes) if config.bidirectional else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.forwards(x)
        return y if self.backwards is None else y + self.backwards(x.flip(1)).flip(1)


class _Lstm(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True, bidirectional=config.bidirectional)
        self.out = nn.Linear(dim * (2 if config.bidirectional else 1), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


class _Attention(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.bidirectional = config.bidirectional
        self.attention = nn.MultiheadAttention(dim, config.heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        placed = x + sinusoid(x.shape[1], x.shape[2], x.device)
        ahead = None
        if not self.bidirectional:
            ahead = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        return self.attention(placed, placed, placed, attn_mask=ahead, need_weights=False)[0]


def sinusoid(length: int, dim: int, device: torch.device) -> Tensor:
    """Sine-cosine position code ``[length, dim]`` (arXiv 1706.03762), for sequences of any length."""
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    return torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1)[:, :dim]
