"""SynthSleepNet (arXiv 2502.17481): masked fusion of the frame tokens of several modalities over frozen
unimodal encoders.

Every channel carries its own tokens; an absent one takes no part in attention, decoding, normalisation or
loss, so any subset of channels works, per sample, in training and at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.errors import ModelError
from sleepfm.models import guards
from sleepfm.models.backbones import Backbones, Layout, LoRAConfig
from sleepfm.models.inputs import check_signals, stack_channels
from sleepfm.models.losses import LossOutput, any_rank, masked_reconstruction, nt_xent
from sleepfm.models.masking import hidden, keep_indices, kept_count, take, unshuffle
from sleepfm.models.negatives import Contrastive
from sleepfm.models.neuronet import NeuroNetConfig, NeuroNetEncoder, TransformerConfig
from sleepfm.models.normalisation import mlp
from sleepfm.models.position import Position, sincos
from sleepfm.models.transformer import NORM_EPS, Block, init_transformer


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
            raise ValueError(f"different channels are needed, out of {', '.join(CHANNEL_MODALITY)}")
        return channels

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the channels, in order."""
        return tuple(dict.fromkeys(CHANNEL_MODALITY[name] for name in self.channels))

    def encoder_config(self, modality: str) -> NeuroNetConfig:
        """Configuration of one modality's encoder."""
        channels = tuple(name for name in self.channels if CHANNEL_MODALITY[name] == modality)
        return self.encoders.get(modality) or self.backbone.model_copy(update={"channels": channels})


class ChannelDecoder(nn.Module):
    """Blocks and head that predict one channel's backbone tokens."""

    def __init__(self, config: TransformerConfig, target: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.pred = nn.Linear(config.dim, target)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """``[N, F, D] -> [N, F, E]``; ``norm`` is shared by the decoders of all channels."""
        for block in self.blocks:
            x = block(x)
        return self.pred(norm(x))


class SynthSleepNet(nn.Module):
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
        self.blocks = nn.ModuleList(Block(dim, config.encoder.heads) for _ in range(config.encoder.depth))
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
            present = self._drop_modalities(present, noise[..., self.frames])
        tokens = self.backbones(signals, present)
        keep = keep_indices(noise[..., : self.frames], kept_count(self.frames, self.config.mask_ratio))
        fused = self._fuse(tokens, present, keep)
        reconstruction, guarded = self._reconstruction(fused, tokens, present, keep)
        mean = _mean_tokens(fused, present)
        contrast, aligned = self._contrast(mean, tokens, present)
        parts = {"reconstruction": reconstruction.detach(), "contrastive": contrast.detach()} | guarded | aligned
        if guards.wanted():
            parts |= {
                "uniformity": guards.uniformity(mean),
                "embedding_std": guards.embedding_std(mean),
                "effective_rank": guards.effective_rank(mean),
            }
        return LossOutput(reconstruction + self.config.alpha * contrast, parts)

    def _drop_modalities(self, present: Tensor, noise: Tensor) -> Tensor:
        """``present`` ``[B, C]`` less the modalities whose draw in ``noise`` ``[B, C]`` (that of their first
        channel) is below the chance; the present one with the highest draw stays.
        """
        modalities = [CHANNEL_MODALITY[name] for name in self.channels]
        draws = noise[:, [modalities.index(modality) for modality in modalities]]
        highest = draws.masked_fill(~present, -1).amax(1, keepdim=True)
        return present & ((draws >= self.config.modality_dropout) | (draws == highest))

    def _fuse(self, tokens: list[Tensor], present: Tensor, keep: Tensor | None, places: Sequence[int] | None = None) -> Tensor:
        """Fused tokens ``[B, C, K, D]``; all ``F`` of a channel without ``keep`` ``[B, C, K]``; absent
        channels hold nothing. With ``places`` everything is of the channels at these only.
        """
        names = [self.channels[place] for place in places] if places is not None else self.channels
        parts = [
            _spread(self.adapters[name](part.flatten(0, 1)).unflatten(0, part.shape[:2]), present[:, column])
            for column, (name, part) in enumerate(zip(names, tokens, strict=True))
        ]
        own = self.modality_token if places is None else self.modality_token[list(places)]
        x = torch.stack(parts, dim=1) + own + self.position
        if keep is not None:
            x = take(x, keep)
        shape = x.shape[1:3]
        keys = None
        if not present.all():
            # An epoch without any channel attends to its empty tokens rather than to nothing, which is undefined.
            attended = present | ~present.any(1, keepdim=True)
            keys = attended[..., None].expand(-1, -1, shape[1]).flatten(1)
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, keys)
        return self.norm(x).unflatten(1, shape)

    def decode(self, place: int, visible: Tensor, keep: Tensor) -> Tensor:
        """Backbone tokens ``[N, F, E]`` of channel ``place`` from its own fused tokens ``[N, K, D]`` at
        ``keep`` ``[N, K]``.
        """
        x = unshuffle(self.decoder_embed(visible), keep, self.mask_token, self.frames) + self.decoder_position
        return self.decoders[self.channels[place]](x, self.decoder_norm)

    def _reconstruction(
        self, fused: Tensor, tokens: list[Tensor], present: Tensor, keep: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over samples of the mean over present channels, and as a guard the same relative to predicting each channel's
        mean token.
        """
        errors, relative = [], []
        for place, target in enumerate(tokens):
            rows = present[:, place]
            prediction = self.decode(place, fused[rows, place], keep[rows, place])
            error = masked_reconstruction(prediction, target, hidden(keep[rows, place], self.frames))
            errors.append(_spread(error, rows))
            if len(error) and guards.wanted():
                relative.append(guards.relative_reconstruction(error.mean().detach(), target.detach()))
        per_sample = torch.stack(errors, dim=1).sum(1) / present.sum(1).clamp(min=1)
        return per_sample.mean(), _mean_of("reconstruction_vs_mean", relative, per_sample)

    def _contrast(self, mean: Tensor, tokens: list[Tensor], present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Means over the channels present anywhere in the batch of NT-Xent between fused and unimodal embeddings, and
        as a guard of their alignment.
        """
        some = present.any(1)
        fused = _spread(self.fusion_projector(mean[some]), some)
        losses, alignments = [], []
        for place, (name, part) in enumerate(zip(self.channels, tokens, strict=True)):
            rows = present[:, place]
            unimodal = _spread(self.projectors[name](part.mean(1)), rows)
            losses.append(nt_xent(fused, unimodal, self.config.temperature, rows, self.config.negatives))
            if len(part) and guards.wanted():
                alignments.append(guards.alignment(fused[rows], unimodal[rows]))
        loss = torch.stack(losses).sum() / any_rank(present.any(0)).sum().clamp(min=1)
        return loss, _mean_of("alignment", alignments, loss)

    def drop_pretraining(self) -> None:
        """Remove what only :meth:`forward` needs: decoders, projectors and the mask token. ``encode`` and ``embed`` stay."""
        parts = ("decoder_embed", "mask_token", "decoder_position", "decoders", "decoder_norm", "projectors", "fusion_projector")
        for name in parts:
            if hasattr(self, name):
                delattr(self, name)

    @property
    def frame_times(self) -> Tensor:
        """Start and end ``[F, 2]`` of every frame in seconds of the epoch."""
        return self.config.encoder_config(self.config.modalities[0]).frame_times

    def encode_frames(self, signals: Tensor, present: Tensor) -> Tensor:
        """``[B, C, T]`` with presence ``[B, C]`` to ``[B, F, D]`` in fp32: of every frame, the mean of the fused tokens of
        the present channels, unmasked.

        An epoch without any present channel gives zeros.
        """
        check_signals(signals, present, self.channels)
        return self._mean_of_channels(self.backbones(signals, present), present)

    def encode_subsets(self, signals: Tensor, present: Tensor, subsets: Tensor) -> Tensor:
        """:meth:`encode` for each of ``subsets`` ``[S, C]`` of the channels: ``[S, B, D]``.

        The backbones see every channel once, whatever the number of subsets: only the fusion is repeated.
        """
        check_signals(signals, present, self.channels)
        tokens = self.backbones(signals, present)
        rows = []
        for subset in subsets.tolist():
            places = [place for place, kept in enumerate(subset) if kept]
            rows.append(self._mean_of_channels([tokens[p] for p in places], present[:, places], places).mean(1))
        return torch.stack(rows)

    def _mean_of_channels(self, tokens: list[Tensor], present: Tensor, places: Sequence[int] | None = None) -> Tensor:
        fused = self._fuse(tokens, present, None, places).float()
        weight = present.float()[..., None, None]
        return (fused * weight).sum(1) / weight.sum(1).clamp(min=1)

    def encode(self, signals: Tensor, present: Tensor) -> Tensor:
        """The mean ``[B, D]`` over the frames of :meth:`encode_frames`."""
        return self.encode_frames(signals, present).mean(1)

    def embed(self, signals: dict[str, Tensor]) -> Tensor:
        """One embedding ``[B, D]`` per epoch from any subset of the channels, each ``[B, T]``.

        Raises:
            ModelError: an unknown channel, another length, or values that are not finite.
        """
        return self.encode(*stack_channels(signals, self.channels))


def _spread(rows: Tensor, mask: Tensor) -> Tensor:
    """``rows`` ``[N, ...]`` at the ``N`` True places of ``mask`` ``[B]``, zeros elsewhere: ``[B, ...]``."""
    if rows.shape[0] == mask.shape[0]:
        return rows
    return rows.new_zeros(mask.shape[0], *rows.shape[1:]).index_put((mask,), rows)


def _mean_of(name: str, figures: list[Tensor], like: Tensor) -> dict[str, Tensor]:
    """The mean of a guard's ``figures`` under its ``name``, nan if there are none; nothing where guards are not wanted."""
    if not guards.wanted():
        return {}
    return {name: torch.stack(figures).mean() if figures else like.new_full((), torch.nan)}


def _mean_tokens(fused: Tensor, present: Tensor) -> Tensor:
    """``[B, C, K, D] -> [B, D]`` in fp32, over the tokens of present channels."""
    weight = present.float()[..., None]
    return (fused.float().mean(2) * weight).sum(1) / weight.sum(1).clamp(min=1)
