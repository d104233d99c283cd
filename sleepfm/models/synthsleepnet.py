"""SynthSleepNet (arXiv 2502.17481): masked fusion of the frame tokens of several modalities over frozen
unimodal encoders.

Every channel carries its own tokens; an absent one takes no part in attention, decoding, normalisation or
loss, so any subset of channels works, per sample, in training and at inference. Presence is a weight: a batch has a row for
every channel of every epoch, and one that is absent is computed from zeros and weighs nothing, so that no shape depends on
what a device would have to tell first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.errors import ModelError
from sleepfm.models import guards
from sleepfm.models.backbones import Backbones, Layout, LoRAConfig
from sleepfm.models.embedding import Encoder
from sleepfm.models.inputs import check_signals
from sleepfm.models.losses import LossOutput, MaskedReconstruction, any_rank, nt_xent_by_pair
from sleepfm.models.masking import hidden, keep_indices, kept_count, take, unshuffle
from sleepfm.models.modality_dropout import drop_modalities
from sleepfm.models.negatives import Contrastive
from sleepfm.models.neuronet import NeuroNetConfig, NeuroNetEncoder, TransformerConfig
from sleepfm.models.normalisation import RowMlp, mlp, only
from sleepfm.models.position import Position, sincos
from sleepfm.models.saturation import LEVELS
from sleepfm.models.side_by_side import rows_side_by_side, side_by_side
from sleepfm.models.transformer import NORM_EPS, Blocks, init_transformer


class SynthSleepNetConfig(Contrastive):
    """Defaults are the paper's.

    ``encoders`` holds the configuration of each modality's encoder; ``backbone`` stands for modalities it
    does not name. ``layout``: one frozen encoder per modality, or a copy per channel as in the paper (the
    same mathematics).
    """

    kind: Literal["synthsleepnet"] = "synthsleepnet"
    channels: tuple[str, ...] = Field(default=("EEG_C4", "EOG_L", "EMG_CHIN", "ECG"), min_length=1)
    layout: Layout = "shared"
    backbone: NeuroNetConfig = NeuroNetConfig()
    encoders: dict[str, NeuroNetConfig] = {}
    lora: LoRAConfig = LoRAConfig()
    encoder: TransformerConfig = TransformerConfig(dim=512, depth=4)
    decoder: TransformerConfig = TransformerConfig(dim=256, depth=3)
    projector: tuple[int, ...] = Field(default=(512, 256), min_length=1)
    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    temperature: float = Field(default=0.1, gt=0)
    alpha: float = Field(default=1.0, ge=0, description="weight of the contrastive loss")
    position: Position = "1d"
    modality_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that pretraining leaves a modality of an epoch out; one always stays"
    )

    @field_validator("channels")
    @classmethod
    def _known(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        if not set(channels) <= set(CHANNEL_MODALITY) or len(set(channels)) != len(channels):
            raise ValueError(f"no channel may occur twice; the channels are {', '.join(CHANNEL_MODALITY)}")
        if set(channels) <= set(LEVELS):
            raise ValueError(f"{', '.join(channels)} is not enough: add a channel that has a NeuroNet")
        return channels

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities whose encoders the channels need, in order; a level (SpO2) needs none."""
        return tuple(dict.fromkeys(CHANNEL_MODALITY[name] for name in self.channels if name not in LEVELS))

    def encoder_config(self, modality: str) -> NeuroNetConfig:
        """Configuration of one modality's encoder."""
        channels = tuple(name for name in self.channels if CHANNEL_MODALITY[name] == modality and name not in LEVELS)
        return self.encoders.get(modality) or self.backbone.model_copy(update={"channels": channels})


class ChannelDecoder(nn.Module):
    """Blocks and head that predict one channel's backbone tokens; the norm between them is that of all channels."""

    def __init__(self, config: TransformerConfig, target: int) -> None:
        super().__init__()
        self.blocks = Blocks(config.depth, config.dim, config.heads)
        self.pred = nn.Linear(config.dim, target)


class SynthSleepNet(Encoder):
    """The multimodal model.

    Args:
        config: dimensions; its ``encoders`` are replaced by those of ``encoders``.
        encoders: pretrained encoder per modality, kept bit-identical; freshly initialised ones if not given.

    Raises:
        ModelError: a modality of ``config.channels`` without encoder, or encoders that do not fit each other.
    """

    position: Tensor
    decoder_position: Tensor

    def __init__(self, config: SynthSleepNetConfig, encoders: Mapping[str, NeuroNetEncoder] | None = None) -> None:
        super().__init__()
        if encoders is None:
            encoders = {name: NeuroNetEncoder(config.encoder_config(name)) for name in config.modalities}
        missing = [name for name in config.modalities if name not in encoders]
        if missing:
            raise ModelError(f"no encoder for {', '.join(missing)}, which channels {', '.join(config.channels)} need")
        encoders = {name: encoders[name] for name in config.modalities}
        own = {name: encoder.config for name, encoder in encoders.items()}
        self.config = config.model_copy(update={"encoders": own})
        self.backbones = Backbones(config.channels, encoders, config.lora, config.layout)
        self.frames, source = self.backbones.frames, self.backbones.dim
        dim, width = config.encoder.dim, config.decoder.dim

        self.adapters = nn.ModuleDict({name: mlp((source, dim, dim)) for name in config.channels})
        self.modality_token = nn.Parameter(torch.empty(len(config.channels), self.frames, dim))
        self.register_buffer("position", sincos(self.frames, dim, config.position), persistent=False)
        self.blocks = Blocks(config.encoder.depth, dim, config.encoder.heads)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        if config.layout == "copies":
            # The released weights hold a class token that no computation uses.
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))

        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("decoder_position", sincos(self.frames, width, config.position), persistent=False)
        self.decoders = nn.ModuleDict({name: ChannelDecoder(config.decoder, source) for name in config.channels})
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.projectors = nn.ModuleDict({name: mlp((source, *config.projector)) for name in config.channels})
        self.fusion_projector = mlp((dim, *config.projector))
        self.reconstruction = MaskedReconstruction()

        nn.init.normal_(self.modality_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        # Everything but the backbones, whose pretrained weights must survive.
        for name, module in self.named_children():
            if name != "backbones":
                init_transformer(module)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels, in the order ``forward`` and ``encode`` take them."""
        return self.config.channels

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.encoder.dim

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of one item's masking noise; with modality dropout a column of its draws comes last."""
        return (len(self.channels), self.frames + (self.config.modality_dropout > 0))

    def forward(self, signals: Tensor, present: Tensor, noise: Tensor) -> LossOutput:
        """The pretraining loss of signals ``[B, C, T]`` with presence ``[B, C]``; masks come from ``noise``
        ``[B, *noise_shape]`` alone.

        ``loss = reconstruction of masked backbone tokens + alpha mean over channels of NT-Xent(fused,
        unimodal)``.

        Raises:
            ModelError: other shapes.
        """
        check_signals(signals, present, self.channels)
        if tuple(noise.shape) != (signals.shape[0], *self.noise_shape):
            raise ModelError(f"expected noise {[signals.shape[0], *self.noise_shape]}, found {list(noise.shape)}")
        if self.training and self.config.modality_dropout:
            present = drop_modalities(present, noise[..., self.frames], self.channels, self.config.modality_dropout)
        tokens = self.backbones(signals, present, range(len(self.channels)))
        keep = keep_indices(noise[..., : self.frames], kept_count(self.frames, self.config.mask_ratio))
        fused = self._fuse(tokens, present, keep, range(len(self.channels)))
        reconstruction, errors, guarded = self._reconstruction(fused, tokens, present, keep)
        mean = _mean_tokens(fused, present)
        contrast, pairs, aligned = self._contrast(mean, tokens, present)
        parts = {"reconstruction": reconstruction.detach(), "contrastive": contrast.detach()} | guarded | aligned
        if guards.wanted():
            parts |= {
                "uniformity": guards.uniformity(mean),
                "embedding_std": guards.embedding_std(mean),
                "effective_rank": guards.effective_rank(mean),
            }
        items = errors + self.config.alpha * pairs
        return LossOutput(reconstruction + self.config.alpha * contrast, parts, items)

    def _fuse(self, tokens: list[Tensor], present: Tensor, keep: Tensor | None, places: Sequence[int]) -> Tensor:
        """Fused tokens ``[B, C, K, D]`` of the channels at ``places``, whose own are ``tokens``; all ``F`` of a channel without
        ``keep`` ``[B, C, K]``. Those of absent channels mean nothing: nobody attends to them.
        """
        rows = present.repeat_interleave(self.frames, dim=0)  # [B F, C]
        adapters = [self.adapters[self.channels[place]] for place in places]
        parts = _by(adapters, [part.flatten(0, 1) for part in tokens], rows.unbind(1))
        own: Tensor = self.modality_token
        if tuple(places) != tuple(range(len(self.channels))):
            own = torch.stack([own[place] for place in places])
        # Not `len(present)`, which is a plain number: an export would hold for a batch of that size alone.
        x = torch.stack([part.unflatten(0, (present.shape[0], self.frames)) for part in parts], dim=1) + own + self.position
        if keep is not None:
            x = take(x, keep)
        shape = x.shape[1:3]
        # An epoch without any channel attends to its empty tokens rather than to nothing, which is undefined.
        attended = present | ~present.any(1, keepdim=True)
        keys = attended[..., None].expand(-1, -1, shape[1]).flatten(1)
        return self.norm(self.blocks(x.flatten(1, 2), keys)).unflatten(1, shape)

    def decoder_tokens(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Fused tokens ``[..., K, D]`` at ``keep`` ``[..., K]`` to what decoders begin with, ``[..., F, D']`` of all frames."""
        return unshuffle(self.decoder_embed(visible), keep, self.mask_token, self.frames) + self.decoder_position

    def decode(self, places: Sequence[int], x: Sequence[Tensor]) -> Sequence[Tensor]:
        """Backbone tokens ``[N, F, E]`` of the channels at ``places`` from :meth:`decoder_tokens` ``[N, F, D']`` of each."""
        decoders = [cast(ChannelDecoder, self.decoders[self.channels[place]]) for place in places]
        blocks, heads = [decoder.blocks for decoder in decoders], [decoder.pred for decoder in decoders]
        return side_by_side(blocks, [self.decoder_norm], x, heads)

    def _reconstruction(
        self, fused: Tensor, tokens: list[Tensor], present: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean over samples of the mean over present channels; that of every sample, detached, ``[B]``; and as a guard the same
        relative to predicting each channel's mean token.
        """
        masks = hidden(keep, self.frames)
        errors, relative = [], []
        predictions = self.decode(range(len(tokens)), self.decoder_tokens(fused, keep).unbind(1))
        for place, (prediction, target) in enumerate(zip(predictions, tokens, strict=True)):
            errors.append(self.reconstruction(prediction, target, masks[:, place]))
            if guards.wanted():
                relative.append(guards.relative_reconstruction(errors[-1], target, present[:, place]))
        per_sample = torch.stack(errors, dim=1).masked_fill(~present, 0).sum(1) / present.sum(1).clamp(min=1)
        return per_sample.mean(), per_sample.detach(), _mean_of("reconstruction_vs_mean", relative, present)

    def _contrast(self, mean: Tensor, tokens: list[Tensor], present: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean over the channels present anywhere in the batch of NT-Xent between fused and unimodal embeddings; of every sample
        that over its own channels, ``[B]``; and as a guard the mean of their alignment.
        """
        projectors = [self.fusion_projector, *(self.projectors[name] for name in self.channels)]
        means = [mean, *(part.mean(1) for part in tokens)]
        fused, *unimodal = _by(projectors, means, [present.any(1), *present.unbind(1)])
        both = fused.expand(len(unimodal), -1, -1), torch.stack(unimodal)
        losses, pairs = nt_xent_by_pair(*both, self.config.temperature, present.mT, self.config.negatives)  # [C], [C, B]
        alignments = (
            [guards.alignment(fused, *of) for of in zip(unimodal, present.unbind(1), strict=True)] if guards.wanted() else []
        )
        loss = losses.sum() / any_rank(present.any(0)).sum().clamp(min=1)
        own = pairs.sum(0) / present.sum(1).clamp(min=1)
        return loss, own, _mean_of("alignment", alignments, present)

    def drop_pretraining(self) -> None:
        """Remove what only :meth:`forward` needs: decoders, projectors and the mask token. ``encode`` and ``embed`` stay."""
        parts = (
            "decoder_embed",
            "mask_token",
            "decoder_position",
            "decoders",
            "decoder_norm",
            "projectors",
            "fusion_projector",
            "reconstruction",
        )
        for name in parts:
            if hasattr(self, name):
                delattr(self, name)

    @property
    def frame_times(self) -> Tensor:
        """Start and end ``[F, 2]`` of every frame in seconds of the epoch."""
        return self.config.encoder_config(self.config.modalities[0]).frame_times

    def encode_frames(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """``[B, C, T]`` with presence ``[B, C]`` to ``[B, F, D]`` in fp32: of every frame, the mean of the fused tokens of
        the present channels, unmasked.

        The signals are those of ``channels``, all of the model's by default; each of them is computed for every epoch. An epoch
        without any present channel gives zeros.
        """
        places = self._places(signals, present, channels)
        return self._mean_of_channels(self.backbones(signals, present, places), present, places)

    def encode_subsets(
        self, signals: Tensor, present: Tensor, subsets: Sequence[Sequence[bool]], channels: Sequence[str] | None = None
    ) -> Tensor:
        """:meth:`encode` for each of ``subsets``, which say of every channel whether it takes part: ``[S, B, D]``.

        The backbones see every channel once, whatever the number of subsets: only the fusion is repeated.
        """
        places = self._places(signals, present, channels)
        tokens, there = self.backbones(signals, present, places), present.unbind(1)
        rows = []
        for subset in subsets:
            own = [column for column, kept in enumerate(subset) if kept]
            if not own:
                rows.append(torch.zeros(len(signals), self.dim, device=signals.device))
                continue
            held = torch.stack([there[column] for column in own], dim=1)
            rows.append(self._mean_of_channels([tokens[c] for c in own], held, [places[c] for c in own]).mean(1))
        return torch.stack(rows)

    def _places(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None) -> list[int]:
        """Where ``channels``, whose signals these are, stand among the model's."""
        channels = self.channels if channels is None else channels
        if unknown := [name for name in channels if name not in self.channels]:
            raise ModelError(f"unknown channels {', '.join(unknown)}; this model takes any of {', '.join(self.channels)}")
        check_signals(signals, present, channels)
        return [self.channels.index(name) for name in channels]

    def _mean_of_channels(self, tokens: list[Tensor], present: Tensor, places: Sequence[int]) -> Tensor:
        fused = self._fuse(tokens, present, None, places).float()
        weight = present.float()[..., None, None]
        return (fused * weight).sum(1) / weight.sum(1).clamp(min=1)

    def encode(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """The mean ``[B, D]`` over the frames of :meth:`encode_frames`."""
        return self.encode_frames(signals, present, channels).mean(1)


def _by(parts: Sequence[nn.Module], inputs: Sequence[Tensor], rows: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each of ``parts`` on all of its own of ``inputs`` ``[N, D]``, its batch statistics those of its own of ``rows`` ``[N]``;
    the others are not used after it.
    """
    with ExitStack() as undo:
        for part, valid in zip(parts, rows, strict=True):
            undo.enter_context(only(part, valid))
        return rows_side_by_side(cast(Sequence[RowMlp], parts), inputs)


def _mean_of(name: str, figures: list[Tensor], present: Tensor) -> dict[str, Tensor]:
    """The mean of a guard's ``figures``, one a channel, over the channels ``present`` ``[B, C]`` in any epoch of any rank, under
    its ``name``; nan where there is none, and nothing where guards are not wanted.
    """
    if not figures:
        return {}
    held = any_rank(present.any(0))
    return {name: torch.stack(figures).masked_fill(~held, 0).sum() / held.sum()}


def _mean_tokens(fused: Tensor, present: Tensor) -> Tensor:
    """``[B, C, K, D] -> [B, D]`` in fp32, over the tokens of present channels."""
    weight = present.float()[..., None]
    return (fused.float().mean(2) * weight).sum(1) / weight.sum(1).clamp(min=1)
