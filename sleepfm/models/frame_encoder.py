"""From a frame of signal to a feature vector: a convolutional stem and branches of residual blocks with
different kernels.

The dimensions of SynthSleepNet's released code are the defaults; NeuroNet's own and the small ones are
configurations in ``configs/models``.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.errors import ModelError
from sleepfm.models.channels_last import AvgPool1d, BatchNorm1d, Conv1d, MaxPool1d, beginning, channels_last, image, signal
from sleepfm.models.fused_norm import Affine, applies, batch_affine, normalised_elu, normalised_sum_elu
from sleepfm.models.recompute import recomputable


class FrameEncoderConfig(Config):
    """``channels`` and ``strides`` have an entry per block, ``kernels`` and ``pools`` one per branch.

    ``pools`` are the widths of the average pooling (stride 1) that ends each branch; ``squeeze`` adds
    squeeze-and-excitation.
    """

    stem: int = Field(default=64, ge=1)
    stem_stride: int = Field(default=2, ge=1)
    channels: tuple[int, ...] = (64, 128, 128, 256)
    strides: tuple[int, ...] = (1, 1, 2, 2)
    kernels: tuple[int, ...] = (3, 5, 7)
    pools: tuple[int, ...] = (16, 11, 6)
    squeeze: bool = True
    reduction: int = Field(default=16, ge=1)
    feature: int | None = Field(default=None, ge=1, description="width of the feature; half of the flattened branches by default")


class SqueezeExcite(nn.Module):
    """Channel attention from the mean over time (arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(x.flatten(2).mean(-1))
        return x * gate.view(*gate.shape, *[1] * (x.ndim - 2))


@recomputable
class Stem(nn.Sequential):
    """Convolution, batch normalisation, ELU and max pooling, which halve the frame twice by default."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(
            Conv1d(1, channels, 7, stride, padding=3, bias=False),
            BatchNorm1d(channels),
            nn.ELU(inplace=True),
            MaxPool1d(3, 2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, window]`` to ``[N, channels, T]``."""
        convolution, norm, activation, pool = self
        if applies(norm):
            y = convolution(x)
            return pool(normalised_elu(y, batch_affine(norm, y)))
        return signal(pool(activation(norm(convolution(image(channels_last(x)))))))


@recomputable
class ResidualBlock(nn.Module):
    """Two convolutions with padding 1 whatever the kernel; the residual loses its right end where they shrink
    the signal.
    """

    def __init__(self, size_in: int, size_out: int, kernel: int, stride: int, squeeze: bool, reduction: int) -> None:
        super().__init__()
        self.conv1 = Conv1d(size_in, size_out, kernel, stride, padding=1, bias=False)
        self.bn1 = BatchNorm1d(size_out)
        self.conv2 = Conv1d(size_out, size_out, kernel, padding=1, bias=False)
        self.bn2 = BatchNorm1d(size_out)
        self.act = nn.ELU(inplace=True)
        self.se = SqueezeExcite(size_out, reduction) if squeeze else nn.Identity()
        self.downsample = (
            nn.Sequential(Conv1d(size_in, size_out, 1, stride, bias=False), BatchNorm1d(size_out))
            if stride != 1 or size_in != size_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, size_in, T]`` to ``[N, size_out, T']``."""
        if applies(self.bn1):
            return self._fused(x)
        # As an image within the block alone: what is changed in place is then no view.
        x = image(x)
        y = self.act(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return signal(self.act(y + beginning(self.downsample(x), y.shape[-1])))

    def _fused(self, x: Tensor) -> Tensor:
        """The same, as :mod:`.fused_norm` computes it."""
        y = self.conv1(x)
        y = self.conv2(normalised_elu(y, batch_affine(self.bn1, y)))
        affine = batch_affine(self.bn2, y)
        if isinstance(self.se, SqueezeExcite):
            affine = affine.gated(self.se.fc(affine.normalised_mean).float())
        residual: Tensor = x
        of_residual: Affine | None = None
        if isinstance(self.downsample, nn.Sequential):
            residual = self.downsample[0](x)
            of_residual = batch_affine(self.downsample[1], residual)
        return normalised_sum_elu(y, affine, residual[..., : y.shape[-1]], of_residual)


class FrameEncoder(nn.Module):
    """Frames ``[B, F, window]`` to features ``[B, F, feature]``; frames are folded into the batch.

    Raises:
        ModelError: the window is too short for the convolutions and poolings of ``config``.
    """

    def __init__(self, config: FrameEncoderConfig, window: int) -> None:
        super().__init__()
        if len(config.channels) != len(config.strides) or len(config.kernels) != len(config.pools):
            raise ModelError(
                f"frame encoder: {len(config.channels)} channels for {len(config.strides)} strides and "
                f"{len(config.kernels)} kernels for {len(config.pools)} pools; give one per block and one per branch"
            )
        self.window = window
        self.stem = Stem(config.stem, config.stem_stride)
        self.branches = nn.ModuleList(
            _branch(config, kernel, pool) for kernel, pool in zip(config.kernels, config.pools, strict=True)
        )
        flat = config.channels[-1] * sum(_lengths(config, window))
        self.feature = config.feature or flat // 2
        self.feature_layer = nn.Sequential(nn.Linear(flat, self.feature), nn.ELU(), nn.Linear(self.feature, self.feature))

    def forward(self, frames: Tensor) -> Tensor:
        """``[B, F, window] -> [B, F, feature]``."""
        if frames.shape[-1] != self.window:
            raise ModelError(f"the frame encoder takes frames of {self.window} samples, found {frames.shape[-1]}")
        x = self.stem(frames.flatten(0, 1)[:, None])
        flat = torch.cat([branch(x) for branch in self.branches], dim=-1).flatten(1)
        return self.feature_layer(flat).unflatten(0, frames.shape[:2])


def _branch(config: FrameEncoderConfig, kernel: int, pool: int) -> nn.Sequential:
    sizes = (config.stem, *config.channels)
    blocks = [
        ResidualBlock(size_in, size_out, kernel, stride, config.squeeze, config.reduction)
        for size_in, size_out, stride in zip(sizes[:-1], sizes[1:], config.strides, strict=True)
    ]
    return nn.Sequential(*blocks, AvgPool1d(pool, stride=1))


def _lengths(config: FrameEncoderConfig, window: int) -> list[int]:
    """Samples that each branch leaves of a window."""
    stem = (_convolved(window, 7, config.stem_stride, 3) - 1) // 2 + 1
    lengths = []
    for kernel, pool in zip(config.kernels, config.pools, strict=True):
        length = stem
        for stride in config.strides:
            length = _convolved(_convolved(length, kernel, stride, 1), kernel, 1, 1)
        length -= pool - 1
        if length < 1:
            raise ModelError(
                f"a window of {window} samples is too short for the frame encoder: kernel {kernel}, strides "
                f"{config.strides} and pool {pool} leave {length} samples; take a longer window or smaller pools"
            )
        lengths.append(length)
    return lengths


def _convolved(length: int, kernel: int, stride: int, padding: int) -> int:
    return (length + 2 * padding - kernel) // stride + 1
