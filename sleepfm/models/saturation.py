"""Oxygen saturation as frame tokens, without a network of its own.

SpO2 is a level in per cent, not a wave: a frame of it is nearly constant, and what it means is its value. A NeuroNet, which
learns the shape of waves with zero median, would see constants; pooled with flow and belts it would share their batch
statistics. So the mean of every frame is written as sines and cosines of it, as positions are (arXiv 1706.03762), and
SynthSleepNet's adapter learns what they say. Nothing here is trained, so its tokens are as fixed as those of a frozen encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sleepfm.constants import RATE_HZ
from sleepfm.models.frames import frames

# Channels whose tokens are made here.
LEVELS = ("SPO2",)
# What oximeters show, and the finest and the coarsest wavelength, all in %: oximeters tell steps of 1 %.
LOWEST, HIGHEST = 50.0, 100.0
FINEST, COARSEST = 4.0, 100.0


class SaturationEncoder(nn.Module):
    """Saturation ``[N, T]`` in % to tokens ``[N, F, dim]`` of its frames, which start and end at ``times`` ``[F, 2]`` s."""

    frequency: Tensor

    def __init__(self, times: Tensor, dim: int) -> None:
        super().__init__()
        begin, end = (times * RATE_HZ).round().long().unbind(1)
        self._window = int(end[0] - begin[0])
        self._step = int(begin[1] - begin[0]) if len(begin) > 1 else 1
        wavelength = torch.logspace(math.log10(FINEST), math.log10(COARSEST), dim // 2, dtype=torch.float64)
        self.register_buffer("frequency", (2 * math.pi / wavelength).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # In fp32 whatever autocast says: bf16 has steps of half a per cent here.
        with torch.autocast(x.device.type, enabled=False):
            level = frames(x.float(), self._window, self._step).mean(-1).clamp(LOWEST, HIGHEST)
            angle = level[..., None] * self.frequency
            return torch.cat([angle.sin(), angle.cos()], dim=-1)
