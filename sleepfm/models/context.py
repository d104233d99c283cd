"""Temporal context over consecutive epochs: what an epoch's neighbours say about it.

SynthSleepNet's temporal context module is ``z + Mamba2(z)`` on batch-normalised embeddings (paper, section on the temporal
context module). LSTM, attention and no context are here for the ablation; all see the same sequence and nothing of other
sequences in the batch. Nights differ in length: ``valid`` ``[B, L]`` says which epochs exist, the others being padding at the
end of a sequence, which changes nothing before it; what comes out at padding means nothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.models.mamba import Mamba2
from sleepfm.models.normalisation import RowBatchNorm, on_valid
from sleepfm.models.recompute import recomputable


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


def build_context(config: ContextConfig, dim: int) -> NoContext | TemporalContext:
    """A module ``[B, L, dim] -> [B, L, dim]`` for any length ``L``."""
    if config.kind == "none":
        return NoContext()
    layer = {"mamba": _Mamba, "lstm": _Lstm, "attention": _Attention}[config.kind]
    return TemporalContext(_SequenceNorm(dim), *(Residual(layer(dim, config)) for _ in range(config.layers)))


class NoContext(nn.Module):
    """Every epoch by itself."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x


class TemporalContext(nn.Sequential):
    """Batch normalisation, then residual layers that look along the sequence."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """``x`` ``[B, L, D]`` with the existing epochs ``valid`` ``[B, L]`` (all, if not given)."""
        return self.mix(self[0](x, valid), valid)

    def mix(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """What :meth:`forward` does after the normalisation."""
        for layer in list(self)[1:]:
            x = layer(x, valid)
        return x


class _SequenceNorm(nn.Module):
    """Batch normalisation of every feature over all existing epochs of the batch; padding becomes zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RowBatchNorm(dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return on_valid(self.norm, x, valid)


@recomputable
class Residual(nn.Module):
    """``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x + self.inner(x, valid)


def _reversed(x: Tensor, valid: Tensor | None) -> Tensor:
    """Sequences ``[B, L, D]`` backwards in time, their padding still at the end. Its own inverse."""
    if valid is None:
        return x.flip(1)
    place = torch.arange(x.shape[1], device=x.device)[None]
    length = valid.sum(1, keepdim=True)
    index = torch.where(place < length, length - 1 - place, place)
    return x.gather(1, index[..., None].expand_as(x))


def _rolled(x: Tensor, by: Tensor) -> Tensor:
    """Sequences ``[B, L, D]``, each moved by its number of ``by`` ``[B]`` towards the end; what leaves there comes in at the
    beginning.
    """
    place = torch.arange(x.shape[1], device=x.device)[None]
    return x.gather(1, ((place - by[:, None]) % x.shape[1])[..., None].expand_as(x))


class _Mamba(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        sizes = (dim, config.d_state, config.d_conv, config.expand, config.headdim)
        self.forwards = Mamba2(*sizes)
        self.backwards = Mamba2(*sizes) if config.bidirectional else None

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        y = self.forwards(x)
        return y if self.backwards is None else y + _reversed(self.backwards(_reversed(x, valid)), valid)


class _Lstm(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True, bidirectional=config.bidirectional)
        self.out = nn.Linear(dim * (2 if config.bidirectional else 1), dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        states = self.lstm(x)[0]
        if valid is not None and self.lstm.bidirectional:
            # Backwards in time padding comes first, unless it stands at the beginning. (Packed sequences need no second pass, but
            # their lengths on the host.)
            padding = (~valid).sum(1)
            behind = _rolled(self.lstm(_rolled(x, padding))[0], -padding)
            states = torch.cat([states[..., : x.shape[2]], behind[..., x.shape[2] :]], dim=2)
        return self.out(states)


class _Attention(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.bidirectional = config.bidirectional
        self.attention = nn.MultiheadAttention(dim, config.heads, batch_first=True)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        length = x.shape[1]
        placed = x + sinusoid(length, x.shape[2], x.device)
        ahead = None if self.bidirectional else torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        missing = None
        if valid is not None:
            missing = ~valid
            # An empty sequence attends to its first place rather than to nothing, which is undefined.
            missing[:, 0] = False
        return self.attention(placed, placed, placed, key_padding_mask=missing, attn_mask=ahead, need_weights=False)[0]


def sinusoid(length: int, dim: int, device: torch.device) -> Tensor:
    """Sine-cosine position code ``[length, dim]`` (arXiv 1706.03762), for sequences of any length."""
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    return torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1)[:, :dim]
