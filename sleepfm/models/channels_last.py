"""Layers on signals ``[N, C, T]`` that may lie in memory channels last: all channels of a sample beside each other.

Processors form convolutions of that layout without moving the data first, and normalise and pool along whole vectors of channels,
however short a signal is: batch norms take a half to a fifth of the time. torch knows the layout of images alone, so a signal is
handed on as an image ``[N, C, 1, T]``. Parameters, their names and what is computed are those of the layers that these derive
from, in whatever layout the input lies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels_last(x: Tensor) -> Tensor:
    """``x`` ``[N, C, T]``, channels last on a processor: what these layers make of it lies as it does."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x
    # A copy, since of one channel torch takes any strides for contiguous.
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def image(x: Tensor) -> Tensor:
    """A signal ``[N, C, T]`` as an image; as it is where a compiler, which lays out tensors itself, looks on."""
    return x if torch.compiler.is_compiling() else x.unsqueeze(2)


def signal(x: Tensor) -> Tensor:
    """What :func:`image` was given."""
    return x.squeeze(2) if x.ndim == 4 else x


def beginning(x: Tensor, length: int) -> Tensor:
    """The first ``length`` samples. The gradient of an image, unlike that of a slice, lies as ``x`` does."""
    if x.shape[-1] == length:
        return x
    return x[..., :length] if x.ndim == 3 else F.pad(x, (0, length - x.shape[-1]))


class Conv1d(nn.Conv1d):
    """``nn.Conv1d`` with a stride and zero padding, also of images ``[N, C, 1, T]``."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 3:
            return super().forward(input)
        weight, stride, padding = self.weight.unsqueeze(2), (1, self.stride[0]), (0, int(self.padding[0]))
        return F.conv2d(input, weight, self.bias, stride, padding)


class BatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of ``[N, C]`` or ``[N, C, T]``, also of images ``[N, C, 1, T]``."""

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.ndim <= 4:
            raise ValueError(f"expected [N, C], [N, C, T] or [N, C, 1, T], found {list(input.shape)}")


class MaxPool1d(nn.MaxPool1d):
    """``nn.MaxPool1d``, also of images ``[N, C, 1, T]``."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 3:
            return super().forward(input)
        kernel, stride, padding = (_number(value) for value in (self.kernel_size, self.stride, self.padding))
        return F.max_pool2d(input, (1, kernel), (1, stride), (0, padding))


class AvgPool1d(nn.AvgPool1d):
    """``nn.AvgPool1d``, in the layout of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input.unsqueeze(2), (1, _number(self.kernel_size)), (1, _number(self.stride))).squeeze(2)


def _number(value: int | tuple[int]) -> int:
    """One-dimensional pools hold either."""
    return value if isinstance(value, int) else value[0]
