"""A pretrained encoder, temporal context and a head: sleep stages, apnea or hypopnea for every epoch of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.errors import ModelError
from sleepfm.models.amplitude import FrameGrid, frame_amplitudes
from sleepfm.models.band_powers import WIDTH, BandPowers, BandPowersConfig, band_powers
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.embedding import BuiltOnEncoder
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
    ``events`` adds a head that tells seconds apart; ``evidence`` are the encoder's channels of which one must be usable in an
    epoch that is assessed; ``band_powers`` names those whose power in each band context and head are told.
    """

    kind: Literal["downstream"] = "downstream"
    task: str
    classes: tuple[str, ...] = Field(min_length=2)
    encoder: dict[str, Any]
    tune: TuneConfig = TuneConfig()
    context: ContextConfig = ContextConfig(kind="none")
    head: HeadConfig = HeadConfig()
    events: EventHeadConfig | None = None
    evidence: tuple[str, ...] = ()
    band_powers: BandPowersConfig | None = None

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """The channels whose amplitude the event head is told."""
        return self.events.amplitudes if self.events is not None else ()

    @property
    def encodes(self) -> bool:
        """Whether anything in the model sees the encoder's tokens."""
        return self.band_powers is None or self.band_powers.embedding or self.events is not None

    @property
    def powered(self) -> tuple[str, ...]:
        """The channels of ``band_powers``."""
        return self.band_powers.channels if self.band_powers is not None else ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of events that the model tells apart."""
        return self.events.kinds if self.events is not None else ()


class Downstream(BuiltOnEncoder):
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
        named = {"band_powers.channels": config.powered, "events.amplitudes": config.amplitudes}
        for key, names in named.items():
            if unknown := [name for name in names if name not in self.channels]:
                raise ModelError(f"{key}: {', '.join(unknown)}: not among the encoder's channels {', '.join(self.channels)}")
        self.powers = BandPowers(self.encoder.dim, config.band_powers) if config.band_powers is not None else None
        self.context = build_context(config.context, self.encoder.dim)
        self.head = Head(self.encoder.dim, len(config.classes), config.head)
        self.events: EventHead | None = None
        if config.events is not None:
            self.events = EventHead(self.feature_dim, self.encoder.frame_times, config.events)
            self._grid = FrameGrid.of(self.encoder.frame_times)

    @property
    def feature_dim(self) -> int:
        """Width of what :meth:`frame_features` gives."""
        events = self.config.events
        return self.embedding_dim + (2 * len(events.amplitudes) if events is not None else 0)

    @property
    def embedding_dim(self) -> int:
        """Width of what :meth:`classify` takes of an epoch: the encoder's embedding, behind it the powers of bands."""
        return int(self.encoder.dim) + (WIDTH if self.powers is not None else 0)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels, in the order ``forward`` takes them."""
        return self.encoder.channels

    @property
    def evidence(self) -> tuple[str, ...]:
        """Channels of which one must be usable in an epoch, or the epoch is not assessed; none where the task asks for none."""
        return self.config.evidence

    def assessed(self, present: Tensor) -> Tensor:
        """Which epochs ``[...]`` with the channels ``present`` ``[..., C]`` the model says anything of."""
        rows = [present[..., self.channels.index(name)] for name in self.evidence]
        return torch.stack(rows).any(0) if rows else present.any(-1)

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
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to :meth:`frame_features` ``[B, L, F, D']``, of zeros for
        epochs that are not ``valid`` ``[B, L]``.
        """
        if valid is not None:
            present = present & valid[..., None]
        flat, there = signals.flatten(0, 1), present.flatten(0, 1)
        if self.config.tune.mode == "frozen":
            with torch.no_grad():
                pieces = zip(flat.split(FROZEN_CHUNK), there.split(FROZEN_CHUNK), strict=True)
                frames = torch.cat([self.frame_features(*piece) for piece in pieces])
        else:
            frames = self.frame_features(flat, there)
        return frames.unflatten(0, signals.shape[:2])

    def frame_features(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """``[B, C, T]`` of ``channels`` (the model's by default) with ``[B, C]`` to the encoder's frame tokens, behind each of
        which stand the powers of the epoch's bands and the amplitudes that the event head is told: ``[B, F, D']``, in fp32.
        """
        tokens = self._tokens(signals, present, channels)
        given, events, told = self.channels if channels is None else channels, self.config.events, [tokens]
        if self.config.powered:
            powers = band_powers(signals, present, given, self.config.powered)
            told.append(powers[:, None].expand(-1, tokens.shape[1], -1))
        if events is not None and events.amplitudes:
            told.append(frame_amplitudes(signals, present, given, events.amplitudes, self._grid))
        return torch.cat(told, dim=-1) if len(told) > 1 else tokens

    def _tokens(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None) -> Tensor:
        """The encoder's frame tokens ``[B, F, D]``; zeros where nothing in this model sees them."""
        if not self.config.encodes:
            return signals.new_zeros(len(signals), len(self.encoder.frame_times), self.encoder.dim, dtype=torch.float32)
        tokens: Tensor = self.encoder.encode_frames(signals, present, channels)
        return tokens

    def embedding_of(self, frames: Tensor) -> Tensor:
        """What is known of an epoch with the features ``[..., F, D']``, ``[..., D]``: the mean of its tokens and its powers."""
        return frames[..., : self.embedding_dim].mean(-2)

    def embed_epochs(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """``[B, C, T]`` of ``channels`` (the model's by default) with ``[B, C]`` to what :meth:`classify` takes, ``[B, D]``."""
        return self.embedding_of(self.frame_features(signals, present, channels))

    def encode(self, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor:
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to embeddings ``[B, L, D]``."""
        return self.embedding_of(self.encode_frames(signals, present, valid))

    def classify(self, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, L, D]`` of consecutive epochs to logits ``[B, L, K]``."""
        if embedding.ndim != 3 or embedding.shape[-1] != self.embedding_dim:
            raise ModelError(f"expected embeddings [B, L, {self.embedding_dim}], found {list(embedding.shape)}")
        if self.powers is not None:
            embedding = self.powers(embedding, valid)
        return self.head(self.context(embedding, valid), valid)

    def locate(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Features ``[B, L, F, D']`` of consecutive epochs' frames to logits ``[B, L, 30, 2 + K]`` of every second.

        Raises:
            ModelError: the model has no event head.
        """
        if self.events is None:
            raise ModelError(f"this model of {self.config.task} has no event head; fine-tune one with an `events` section")
        return self.events(frames, valid)

    def forward(self, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``signals`` ``[B, L, C, T]`` and ``present`` ``[B, L, C]`` to logits ``[B, L, K]``, and with an event head those of
        every second ``[B, L, 30, 2 + K]`` beside them. Those of epochs that are not :meth:`assessed` mean nothing.
        """
        seen = self.assessed(present)
        if valid is not None:
            seen = seen & valid
        return self.from_frames(self.encode_frames(signals, present, seen), seen)

    def from_frames(self, frames: Tensor, seen: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What :meth:`forward` gives for the features ``[B, L, F, D']`` of frames, of which the epochs ``seen`` ``[B, L]`` are
        there.
        """
        # As in the scoring of a night, the context goes on across epochs without a channel as if they were not there: they
        # go to the end, where padding is. In order, `order` is the identity.
        order = torch.argsort(~seen, dim=1, stable=True)
        back = torch.argsort(order, dim=1)
        ordered, existing = _taken(frames, order), _taken(seen, order)
        logits = _taken(self.classify(self.embedding_of(ordered), existing), back)
        return logits if self.events is None else (logits, _taken(self.locate(ordered, existing), back))


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """``x`` ``[B, L, ...]`` with its epochs in ``order`` ``[B, L]``."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))
