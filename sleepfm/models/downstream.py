"""A pretrained encoder, temporal context and a head: sleep stages, apnea or hypopnea for every epoch of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.errors import ModelError
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.event_head import EventHead, EventHeadConfig
from sleepfm.models.heads import Head, HeadConfig
from sleepfm.models.lora import LoRALinear, add_lora
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.normalisation import by_rows

if TYPE_CHECKING:
    from sleepfm.models.usage import Usage

# Epochs that go through a frozen encoder at once: a whole night in one sequence then takes no more memory than this many.
FROZEN_CHUNK = 64


class TuneConfig(Config):
    """What of the encoder trains: nothing, low-rank updates of the named linear layers, or all of it.

    ``targets`` are regular expressions on whole names of linear layers; ``{last}`` is the index of the encoder's last block.
    The default ones are the paper's: the two linear layers of every frame backbone and the MLP of the last fusion block.
    """

    mode: Literal["frozen", "lora", "full"] = "frozen"
    rank: int = Field(4, ge=1)
    alpha: float = 8.0
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = (r".*feature_layer\.[02]", r"(?:encoder\.)?blocks\.{last}\.mlp\.fc[12]")


class DownstreamConfig(Config):
    """``encoder`` is the configuration of the pretrained model, as :func:`sleepfm.models.build.build_model` takes it;
    ``events`` adds a head that tells seconds apart.
    """

    kind: Literal["downstream"] = "downstream"
    task: str
    classes: tuple[str, ...] = Field(min_length=2)
    encoder: dict[str, Any]
    tune: TuneConfig = TuneConfig()
    context: ContextConfig = ContextConfig(kind="none")
    head: HeadConfig = HeadConfig()
    events: EventHeadConfig | None = None


class Downstream(nn.Module):
    """Encoder, context and head; with ``config.events`` also an event head on the frames.

    Sequences may be of different lengths: ``valid`` ``[B, L]`` says which epochs exist, the others being padding at the end.

    Args:
        config: what to build.
        encoder: a SynthSleepNet or NeuroNet, taken over without what only pretraining needs. What ``config.tune`` leaves
            frozen stays bit-identical and in eval mode.

    Attributes:
        usage: what its package says of how it is used; None until somebody does, as in training.
    """

    def __init__(self, config: DownstreamConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.usage: Usage | None = None
        self.encoder: Any = cast(Any, encoder)
        self.encoder.drop_pretraining()
        self._own_lora = self._adapt()
        self.context = build_context(config.context, self.encoder.dim)
        self.head = Head(self.encoder.dim, len(config.classes), config.head)
        self.events: EventHead | None = None
        if config.events is not None:
            self.events = EventHead(self.encoder.dim, self.encoder.frame_times, config.events)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels, in the order ``forward`` takes them."""
        return self.encoder.channels

    def _adapt(self) -> list[LoRALinear]:
        """Freeze what does not train; returns the low-rank layers that do (those of pretraining stay frozen)."""
        tune = self.config.tune
        self.encoder.requires_grad_(tune.mode == "full")
        if tune.mode == "full" and isinstance(self.encoder, NeuroNet):
            # Its batch statistics train, of which epochs that lack a channel are no part.
            by_rows(self.encoder)
        if tune.mode != "lora":
            return []
        last = self.encoder.config.encoder.depth - 1
        targets = [target.replace("{last}", str(last)) for target in tune.targets]
        return add_lora(self.encoder, targets, 1, tune.rank, tune.alpha, tune.dropout)

    def train(self, mode: bool = True) -> Downstream:
        """Frozen parts stay in eval mode: their batch statistics and dropout belong to their own training."""
        super().train(mode)
        if self.config.tune.mode != "full":
            self.encoder.eval()
        for layer in self._own_lora:
            layer.dropout.train(mode)
        return self

    def encode_frames(self, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor:
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to frame tokens ``[B, L, F, D]``, zeros for epochs that
        are not ``valid`` ``[B, L]``.
        """
        if valid is not None:
            present = present & valid[..., None]
        flat, there = signals.flatten(0, 1), present.flatten(0, 1)
        if self.config.tune.mode == "frozen":
            with torch.no_grad():
                pieces = zip(flat.split(FROZEN_CHUNK), there.split(FROZEN_CHUNK), strict=True)
                frames = torch.cat([self.encoder.encode_frames(*piece) for piece in pieces])
        else:
            frames = self.encoder.encode_frames(flat, there)
        return frames.unflatten(0, signals.shape[:2])

    def encode(self, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor:
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to embeddings ``[B, L, D]``."""
        return self.encode_frames(signals, present, valid).mean(2)

    def classify(self, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, L, D]`` of consecutive epochs to logits ``[B, L, K]``."""
        if embedding.ndim != 3 or embedding.shape[-1] != self.encoder.dim:
            raise ModelError(f"expected embeddings [B, L, {self.encoder.dim}], found {list(embedding.shape)}")
        return self.head(self.context(embedding, valid), valid)

    def locate(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frame tokens ``[B, L, F, D]`` of consecutive epochs to logits ``[B, L, 30, 2]`` of every second.

        Raises:
            ModelError: the model has no event head.
        """
        if self.events is None:
            raise ModelError(f"this model of {self.config.task} has no event head; fine-tune one with an `events` section")
        return self.events(frames, valid)

    def forward(self, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to logits ``[B, L, K]``, and with an event head those of
        every second ``[B, L, 30, 2]`` beside them. Those of epochs without a present channel mean nothing.
        """
        seen = present.any(2)
        if valid is not None:
            seen = seen & valid
        frames = self.encode_frames(signals, present, seen)
        # As in the scoring of a night, the context goes on across epochs without a channel as if they were not there: they
        # go to the end, where padding is. In order, `order` is the identity.
        order = torch.argsort(~seen, dim=1, stable=True)
        back = torch.argsort(order, dim=1)
        ordered, existing = _taken(frames, order), _taken(seen, order)
        logits = _taken(self.classify(ordered.mean(2), existing), back)
        return logits if self.events is None else (logits, _taken(self.locate(ordered, existing), back))

    def embed(self, signals: dict[str, Tensor]) -> Tensor:
        """One embedding ``[B, D]`` per epoch from any subset of channels, each ``[B, T]``."""
        return self.encoder.embed(signals)


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """``x`` ``[B, L, ...]`` with its epochs in ``order`` ``[B, L]``."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))
