"""How an epoch's power is spread over the bands by which stages are told: what a head is told beside the embedding.

Slow waves, theta, alpha, spindles and beta are what the AASM manual stages by (chapter IV). A network that learnt them from
recordings of one kind tells them less well in another; their logarithms change little from one recorder to the next, and where
they lie among those of the hours around not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.constants import RATE_HZ
from sleepfm.models.normalisation import RowBatchNorm, on_valid

# Slow waves in two halves, theta, alpha, sigma and beta.
BANDS_HZ = ((0.5, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 11.0), (11.0, 16.0), (16.0, 30.0))
# Of each band its share of the power and its bursts, and the power of all.
WIDTH = 2 * len(BANDS_HZ) + 1
# A spindle lasts half a second and more: spectra of 2 s, every second.
_WINDOW, _STEP = 2 * RATE_HZ, RATE_HZ
# Of a signal with an interquartile range of 1; less is nothing.
_SMALLEST = 1e-3
# Added to a standard deviation, which is 0 where all epochs are alike.
_LEAST_SPREAD = 0.1


class BandPowersConfig(Config):
    """``channels`` whose powers context and head are told; with ``embedding`` off, instead of the embedding."""

    channels: tuple[str, ...] = Field(min_length=1)
    embedding: bool = True


def band_powers(signals: Tensor, present: Tensor, channels: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Logarithms of power in epochs, ``[B, WIDTH]`` in fp32: of each band its share, of all bands the sum, and of each band
    by how much its largest spectrum is above the mean one. Means over those of ``wanted`` that are there; 0 where none is.

    Args:
        signals, present: ``[B, C, T]`` and ``[B, C]`` of ``channels``.
    """
    places = [list(channels).index(name) for name in wanted if name in channels]
    if not places:
        return signals.new_zeros(len(signals), WIDTH, dtype=torch.float32)
    # An index of numbers would be a tensor of the host, for which a device waits.
    held = torch.stack([present[:, place] for place in places], dim=1)[..., None]
    x = torch.stack([signals[:, place] for place in places], dim=1)
    x, there = x.masked_fill(~held, 0).float().unfold(-1, _WINDOW, _STEP), held.float()
    # Hann's.
    window = 0.5 - 0.5 * torch.cos(torch.arange(_WINDOW, device=x.device) * (2 * math.pi / _WINDOW))
    spectra = torch.fft.rfft((x - x.mean(-1, keepdim=True)) * window).abs().square() / _WINDOW
    width = RATE_HZ / _WINDOW
    rows = [slice(round(low / width), round(high / width)) for low, high in BANDS_HZ]
    power = torch.stack([spectra[..., band].sum(-1) for band in rows], dim=-1) + _SMALLEST  # [B, W, S, bands]
    every, logarithm = power.mean(2), power.log()
    total = every.sum(-1, keepdim=True).log()
    bursts = logarithm.amax(2) - logarithm.mean(2)
    found = torch.cat([every.log() - total, total, bursts], dim=-1) * there
    return found.sum(1) / there.sum(1).clamp(min=1)


def among_neighbours(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """``x`` ``[B, L, D]`` less the mean of its sequence and over its spread, of the epochs ``valid`` ``[B, L]``; 0 for others."""
    there = x.new_ones(x.shape[:2]) if valid is None else valid.to(x.dtype)
    there, count = there[..., None], there.sum(1)[:, None, None].clamp(min=1)
    centred = (x - (x * there).sum(1, keepdim=True) / count) * there
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / (spread + _LEAST_SPREAD)


class BandPowers(nn.Module):
    """What is known of consecutive epochs, ``[B, L, D + WIDTH]``, their embeddings and behind them their powers, to one vector of
    an epoch, ``[B, L, D]``: powers count as they are and as they lie among those of the sequence.

    Args:
        dim: of an embedding.
        config: whether embeddings count at all.
    """

    def __init__(self, dim: int, config: BandPowersConfig) -> None:
        super().__init__()
        self._from = 0 if config.embedding else dim
        self.norm = RowBatchNorm(dim + WIDTH - self._from)
        self.join = nn.Sequential(nn.Linear(dim + 2 * WIDTH - self._from, dim), nn.GELU())

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Of epochs that are not ``valid`` ``[B, L]`` what comes out means nothing."""
        known = on_valid(self.norm, x[..., self._from :], valid)
        joined: Tensor = self.join(torch.cat([known, among_neighbours(x[..., -WIDTH:], valid)], dim=-1))
        return joined
