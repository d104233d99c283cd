"""How large a signal is in each frame: what an event of breathing is scored by, told to the event head beside the tokens.

An apnea is a fall of the flow's amplitude by 90 %, a hypopnea by 30 % (AASM manual, chapter VIII). Batch and layer norms on the
way to a token keep the shape of a wave and little of its size, and the mean over channels does not say whose size it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sleepfm.constants import RATE_HZ
from sleepfm.models.frames import frames
from sleepfm.models.saturation import LEVELS

# Of a signal with an interquartile range of 1; less is nothing.
SMALLEST = 1e-3
# Saturation of healthy sleep, and how far events take it down, in %.
REST, FALL = 95.0, 3.0


class FrameGrid(NamedTuple):
    """Whole frames at equal steps: how many, and the samples of a frame and from one to the next."""

    number: int
    window: int
    step: int

    @classmethod
    def of(cls, frame_times: Tensor) -> FrameGrid:
        """Of frames with these starts and ends ``[F, 2]`` in seconds. Reads the tensor, so not in a training step."""
        begin, end = (frame_times * RATE_HZ).round().long().cpu().unbind(1)
        return cls(len(frame_times), int(end[0] - begin[0]), int(begin[1] - begin[0]))


def frame_amplitudes(signals: Tensor, present: Tensor, channels: Sequence[str], wanted: Sequence[str], grid: FrameGrid) -> Tensor:
    """Log amplitude (of SpO2 the level) in every frame and whether it is known, for each of ``wanted``: ``[B, F, 2 W]`` in fp32.

    Args:
        signals, present: ``[B, C, T]`` and ``[B, C]`` of ``channels``; of ``wanted`` those that are not among them are unknown.
        grid: the frames.
    """
    columns = []
    for name in wanted:
        if name not in channels:
            columns += [signals.new_zeros(len(signals), grid.number, dtype=torch.float32)] * 2
            continue
        place = list(channels).index(name)
        there = present[:, place, None].float()
        x = frames(signals[:, place].masked_fill(~present[:, place, None], 0).float(), grid.window, grid.step)
        if name in LEVELS:
            size = (x.mean(-1) - REST) / FALL
        else:
            size = x.square().mean(-1).sqrt().clamp(min=SMALLEST).log()
        columns += [size * there, there.expand_as(size)]
    return torch.stack(columns, dim=-1)
