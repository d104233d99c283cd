"""The event head: of every second, whether an apnea or hypopnea goes on, from the frame tokens of consecutive epochs.

An epoch-level head says that an epoch holds an event; frames advance by a second or less, so their tokens also say when it
begins and how long it lasts.
"""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.constants import EPOCH_SECONDS, EVENT_TYPES
from sleepfm.models.context import ContextConfig, build_context


class EventHeadConfig(Config):
    """``context`` looks along the seconds; ``weight`` is that of the head's loss beside the loss of the epochs.

    ``amplitudes`` are channels of the encoder whose size in every frame the head is told beside the tokens
    (:mod:`sleepfm.models.amplitude`); ``kinds`` are types of events (:data:`sleepfm.constants.EVENT_TYPES`) that the head tells
    apart, where their scorer did.
    """

    hidden: int = Field(128, ge=1)
    context: ContextConfig = ContextConfig(kind="mamba", bidirectional=True)
    weight: float = Field(1.0, gt=0)
    amplitudes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @field_validator("kinds")
    @classmethod
    def _are_types(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if len(kinds) == 1 or len(set(kinds)) != len(kinds) or not set(kinds) <= set(EVENT_TYPES):
            raise ValueError(f"give two or more different types of events, from {', '.join(EVENT_TYPES)}")
        return kinds


class EventHead(nn.Module):
    """Frame tokens ``[B, L, F, D]`` of consecutive epochs to logits ``[B, L, 30, 2 + K]`` of every second: two of whether it lies
    in an event, then one for each of ``K`` kinds.

    Args:
        dim: width of a token with the amplitudes behind it.
        frame_times: start and end ``[F, 2]`` of every frame in seconds of its epoch.
        config: dimensions.
    """

    spread: Tensor

    def __init__(self, dim: int, frame_times: Tensor, config: EventHeadConfig) -> None:
        super().__init__()
        self.register_buffer("spread", second_weights(frame_times), persistent=False)
        self.embed = nn.Linear(dim, config.hidden)
        self.context = build_context(config.context, config.hidden)
        self.out = nn.Linear(config.hidden, 2 + len(config.kinds))

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits; those of epochs that are not ``valid`` ``[B, L]`` mean nothing."""
        seconds = torch.einsum("sf,blfh->blsh", self.spread, self.embed(frames).float()).flatten(1, 2)
        every = None if valid is None else valid.repeat_interleave(EPOCH_SECONDS, dim=1)
        return self.out(self.context(seconds, every)).unflatten(1, (-1, EPOCH_SECONDS))


def second_weights(frame_times: Tensor) -> Tensor:
    """Weights ``[30, F]`` with which frames make up each second of an epoch: how much of the second they cover, with sum 1.

    A second that no frame covers (after the last whole frame) is that of the frame nearest to it.
    """
    second = torch.arange(EPOCH_SECONDS, dtype=torch.float32)[:, None]
    start, end = frame_times.float().unbind(1)
    overlap = (torch.minimum(second + 1, end) - torch.maximum(second, start)).clamp(min=0)
    away = (second + 0.5 - (start + end) / 2).abs()
    nearest = torch.zeros_like(overlap).scatter_(1, away.argmin(1, keepdim=True), 1.0)
    overlap = torch.where(overlap.sum(1, keepdim=True) > 0, overlap, nearest)
    return overlap / overlap.sum(1, keepdim=True)
