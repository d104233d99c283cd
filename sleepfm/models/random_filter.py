"""Filters drawn at random, through which signals pass in training, so that a model learns to do without the shape of a spectrum.

Amplifiers, electrodes, derivations and skulls raise some frequencies and lower others, of all stages alike. What a network learns
of a few recorders' spectra it does not find in another's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sleepfm.constants import RATE_HZ

# Hertz at which a gain is drawn; between them it is linear in the logarithm of frequency, and beyond them constant.
KNOTS_HZ = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_DECIBELS_OF_E = 20 / math.log(10)


def filtered(signals: Tensor, draws: Tensor, decibels: Tensor) -> Tensor:
    """``signals`` ``[B, L, C, T]`` at 100 Hz, each sequence and channel through a zero-phase filter of its own.

    Args:
        draws: ``[B, K, C]``, uniform in 0 to 1, for each of :data:`KNOTS_HZ`.
        decibels: ``[C]``, the most that a channel's gain differs from one at a knot, up or down; 0 leaves it as it is.
    """
    length = signals.shape[-1]
    logs = ((2 * draws.float() - 1) * decibels.float() / _DECIBELS_OF_E).transpose(1, 2)  # [B, C, K]
    places, shares = _between_knots(length, signals.device)
    curve = torch.exp(logs[..., places] * (1 - shares) + logs[..., places + 1] * shares)  # [B, C, T / 2 + 1]
    spectrum = torch.fft.rfft(signals.float()) * curve[:, None]
    return torch.fft.irfft(spectrum, n=length).to(signals.dtype)


def _between_knots(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each frequency of ``length`` samples, the knot below it, and how far it lies on the way to the next one."""
    hertz = torch.fft.rfftfreq(length, 1 / RATE_HZ, device=device)
    knots = torch.tensor(KNOTS_HZ, device=device).log2()
    octaves = hertz.clamp(KNOTS_HZ[0], KNOTS_HZ[-1]).log2()
    places = (torch.searchsorted(knots, octaves, right=True) - 1).clamp(0, len(KNOTS_HZ) - 2)
    return places, (octaves - knots[places]) / (knots[places + 1] - knots[places])
