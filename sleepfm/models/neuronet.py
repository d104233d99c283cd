"""NeuroNet (arXiv 2404.17585): masked prediction of frame features and contrast of two masked views.

One network per modality; its channels (C3 and C4, left and right EOG) are samples of one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.constants import CHANNEL_MODALITY, EPOCH_SAMPLES, RATE_HZ
from sleepfm.errors import ModelError
from sleepfm.models import guards
from sleepfm.models.embedding import Encoder
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig
from sleepfm.models.frames import frame_count, frames, samples
from sleepfm.models.inputs import check_signals, is_countable
from sleepfm.models.losses import LossOutput, MaskedReconstruction, nt_xent_by_pair
from sleepfm.models.masking import hidden, keep_indices, kept_count, take, unshuffle
from sleepfm.models.negatives import Contrastive
from sleepfm.models.normalisation import mlp, only
from sleepfm.models.position import Position, sincos
from sleepfm.models.saturation import LEVELS
from sleepfm.models.transformer import NORM_EPS, Blocks, init_transformer


class TransformerConfig(Config):
    """Width, depth and attention heads of a stack of blocks."""

    dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    heads: int = Field(default=8, ge=1)


class NeuroNetConfig(Contrastive):
    """Defaults are those of SynthSleepNet's unimodal networks."""

    kind: Literal["neuronet"] = "neuronet"
    channels: tuple[str, ...] = Field(default=("EEG_C3", "EEG_C4"), min_length=1)
    window_s: float = Field(default=4.0, gt=0)
    step_s: float = Field(default=1.0, gt=0)
    frame_encoder: FrameEncoderConfig = FrameEncoderConfig()
    encoder: TransformerConfig = TransformerConfig(dim=768, depth=4)
    decoder: TransformerConfig = TransformerConfig(dim=256, depth=3)
    projector: tuple[int, ...] = Field(default=(1024, 512), min_length=1)
    mask_ratio: float = Field(default=0.8, gt=0, lt=1)
    temperature: float = Field(default=0.05, gt=0)
    alpha: float = Field(default=1.0, ge=0, description="weight of the contrastive loss")
    position: Position = "1d"

    @field_validator("channels")
    @classmethod
    def _one_modality(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        modalities = {CHANNEL_MODALITY.get(name) for name in channels}
        if len(modalities) != 1 or None in modalities or len(set(channels)) != len(channels):
            raise ValueError(f"all channels must be of one modality; the channels are {', '.join(CHANNEL_MODALITY)}")
        if levels := [name for name in channels if name in LEVELS]:
            raise ValueError(f"{', '.join(levels)} is a level and not a wave; SynthSleepNet takes it without a NeuroNet")
        return channels

    @property
    def modality(self) -> str:
        """Modality of the channels."""
        return CHANNEL_MODALITY[self.channels[0]]

    @property
    def frames(self) -> int:
        """Frames in an epoch."""
        return frame_count(EPOCH_SAMPLES, samples(self.window_s), samples(self.step_s))

    @property
    def frame_times(self) -> Tensor:
        """Start and end ``[F, 2]`` of every frame in seconds of the epoch."""
        start = torch.arange(self.frames) * samples(self.step_s) / RATE_HZ
        return torch.stack([start, start + samples(self.window_s) / RATE_HZ], dim=1)


class NeuroNetEncoder(nn.Module):
    """Signals to tokens: frame encoder, linear embedding, fixed position, class token, transformer blocks.

    Raises:
        ModelError: dimensions that do not fit each other.
    """

    def __init__(self, config: NeuroNetConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        self.dim = dim = config.encoder.dim
        self.frame_backbone = FrameEncoder(config.frame_encoder, samples(config.window_s))
        self.patch_embed = nn.Linear(self.frame_backbone.feature, dim)
        self.blocks = Blocks(config.encoder.depth, dim, config.encoder.heads)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        # A parameter, not a buffer: the released networks trained theirs, and a converted one carries it.
        position = torch.cat([torch.zeros(1, dim), sincos(self.frames, dim, config.position)])
        self.pos_embed = nn.Parameter(position[None], requires_grad=False)
        nn.init.normal_(self.cls_token, std=0.02)
        for module in (self.patch_embed, self.blocks, self.norm):
            init_transformer(module)

    def features(self, x: Tensor) -> Tensor:
        """Signals ``[B, T]`` to frame features ``[B, F, feature]``."""
        config = self.config
        return self.frame_backbone(frames(x, samples(config.window_s), samples(config.step_s)))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Signals, or the features of their frames, to the class token and frame tokens, the class token first.

        Args:
            x: signals ``[B, T]``, or what :meth:`features` made of them, ``[B, F, feature]``.
            keep: ``[B, V, K]`` indices of visible frames in each of ``V`` masked views, which are then
                stacked in the batch: ``[B V, 1 + K, D]``. All frames without: ``[B, 1 + F, D]``.
        """
        return self.norm(self.blocks(self.tokens(x, keep)))

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """What the blocks begin with, of the arguments of :meth:`forward` and in the shape of its result."""
        features = self.features(x) if x.ndim == 2 else x
        x = self.patch_embed(features) + self.pos_embed[:, 1:]
        if keep is not None:
            x = take(x[:, None].expand(-1, keep.shape[1], -1, -1), keep).flatten(0, 1)
        first = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype)
        return torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)


class NeuroNet(Encoder):
    """Encoder with the decoder and projector that pretraining needs."""

    def __init__(self, config: NeuroNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = NeuroNetEncoder(config)
        width, feature = config.decoder.dim, self.encoder.frame_backbone.feature
        self.decoder_embed = nn.Linear(config.encoder.dim, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder_pos_embed = nn.Parameter(sincos(config.frames, width, config.position)[None], requires_grad=False)
        self.decoder_blocks = Blocks(config.decoder.depth, width, config.decoder.heads)
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, feature)
        self.projector = mlp((config.encoder.dim, *config.projector))
        self.reconstruction = MaskedReconstruction()
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            init_transformer(module)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels, in the order :meth:`encode` takes them."""
        return self.config.channels

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.encoder.dim

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of one item's masking noise: two views of the frames."""
        return (2, self.config.frames)

    def forward(self, signals: Tensor, noise: Tensor) -> LossOutput:
        """The pretraining loss of signals ``[B, T]``; masks come from ``noise`` ``[B, 2, F]`` alone.

        ``loss = reconstruction (both views) + alpha NT-Xent(class tokens of the views)``.

        Raises:
            ModelError: another shape of signals or noise.
        """
        config = self.config
        if signals.ndim != 2 or signals.shape[1] != EPOCH_SAMPLES:
            raise ModelError(f"expected signals [B, {EPOCH_SAMPLES}], found {list(signals.shape)}")
        if tuple(noise.shape) != (signals.shape[0], *self.noise_shape):
            raise ModelError(f"expected noise {[signals.shape[0], *self.noise_shape]}, found {list(noise.shape)}")
        features = self.encoder.features(signals)
        keep = keep_indices(noise, kept_count(config.frames, config.mask_ratio))
        latent = self.encoder(features, keep)
        prediction = self.decode(latent[:, 1:], keep.flatten(0, 1)).unflatten(0, keep.shape[:2])
        mask = hidden(keep, config.frames)
        errors = self.reconstruction(prediction, features[:, None].expand_as(prediction), mask)  # [B, 2]
        reconstruction = errors.mean(0).sum()
        # Each view through the projector by itself: batch statistics are those of one view.
        views = latent[:, 0].unflatten(0, keep.shape[:2])
        first, second = self.projector(views[:, 0]), self.projector(views[:, 1])
        contrast, pairs = nt_xent_by_pair(first, second, config.temperature, negatives=config.negatives)
        loss = reconstruction + config.alpha * contrast
        parts = {"reconstruction": reconstruction.detach(), "contrastive": contrast.detach()}
        if guards.wanted():
            parts |= {
                "reconstruction_vs_mean": guards.relative_reconstruction(errors.mean(1), features),
                "alignment": guards.alignment(first, second),
                "uniformity": guards.uniformity(first),
                "embedding_std": guards.embedding_std(views[:, 0]),
                "effective_rank": guards.effective_rank(views[:, 0]),
            }
        return LossOutput(loss, parts, errors.sum(1).detach() + config.alpha * pairs)

    def decode(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Features ``[N, F, feature]`` of all frames from the visible tokens ``[N, K, D]`` at ``keep`` ``[N,
        K]``.
        """
        x = unshuffle(self.decoder_embed(visible), keep, self.mask_token, self.config.frames)
        x = self.decoder_blocks(x + self.decoder_pos_embed)
        return self.decoder_pred(self.decoder_norm(x))

    def drop_pretraining(self) -> None:
        """Remove what only :meth:`forward` needs: decoder, projector and mask token. ``encode`` and ``embed`` stay."""
        parts = (
            "decoder_embed",
            "mask_token",
            "decoder_pos_embed",
            "decoder_blocks",
            "decoder_norm",
            "decoder_pred",
            "projector",
            "reconstruction",
        )
        for name in parts:
            if hasattr(self, name):
                delattr(self, name)

    @property
    def frame_times(self) -> Tensor:
        """Start and end ``[F, 2]`` of every frame in seconds of the epoch."""
        return self.config.frame_times

    def encode_frames(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """``[B, C, T]`` with presence ``[B, C]`` to ``[B, F, D]`` in fp32: of every frame, the mean of its tokens over the
        present channels.

        The signals are those of ``channels``, all of the model's by default. An epoch without any present channel gives zeros.
        """
        check_signals(signals, present, self.channels if channels is None else channels)
        rows = self._of_present(signals.flatten(0, 1), present.flatten()).unflatten(0, present.shape)
        return rows.sum(1) / present.sum(1)[:, None, None].clamp(min=1)

    def _of_present(self, signals: Tensor, present: Tensor) -> Tensor:
        """Frame tokens ``[N, F, D]`` in fp32 of the rows ``[N, T]`` that are present ``[N]``; zeros for the others."""
        # Where nothing has to wait for it, no row is computed that is absent.
        if is_countable(present):
            if present.all():
                return self.encoder(signals)[:, 1:].float()
            if present.any():
                found = self.encoder(signals[present])[:, 1:].float()
                return found.new_zeros(len(present), *found.shape[1:]).index_put((present,), found)
        absent = ~present
        # In training, batch statistics leave absent rows out if `normalisation.by_rows` has been here.
        with only(self.encoder, present.repeat_interleave(self.encoder.frames)):
            tokens = self.encoder(signals.masked_fill(absent[:, None], 0))[:, 1:].float()
        return tokens.masked_fill(absent[:, None, None], 0)

    def encode(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """The mean ``[B, D]`` over the frames of :meth:`encode_frames`."""
        return self.encode_frames(signals, present, channels).mean(1)
