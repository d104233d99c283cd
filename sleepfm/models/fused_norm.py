"""Batch normalisation and what follows it, in a form that a compiler turns into few passes over memory.

A batch norm of ``x`` ``[N, C, T]`` is ``x * scale + shift`` once its statistics are known. Here statistics are taken along ``T``
first and then over the rows, by the law of total variance; so are the sums of the backward pass, which is written out and
computes from ``x`` again what it needs. Each tensor is then read once for its sums and once for its result, and every sum shares
its pass with whatever else reads the tensor: squeeze-and-excitation takes its mean from the statistics.

Called without a compiler, each of these operations would be a pass of its own; torch's batch norm is faster there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.models.channels_last import BatchNorm1d


class Affine(NamedTuple):
    """``x * scale + shift``, each ``[1, C]`` or ``[N, C]`` in fp32, is ``x`` normalised; ``mean`` ``[N, C]`` is over time."""

    scale: Tensor
    shift: Tensor
    mean: Tensor

    def gated(self, gate: Tensor) -> Affine:
        """The same, times ``gate`` ``[N, C]``."""
        return Affine(self.scale * gate, self.shift * gate, self.mean)

    @property
    def normalised_mean(self) -> Tensor:
        """Mean over time ``[N, C]`` of what is normalised."""
        return self.mean * self.scale + self.shift


def applies(norm: nn.Module) -> bool:
    """Whether ``norm`` is one that :func:`batch_affine` stands for: of all rows of one rank, in training, being compiled."""
    return torch.compiler.is_compiling() and type(norm) is BatchNorm1d and norm.training


def batch_affine(norm: nn.Module, x: Tensor) -> Affine:
    """What ``norm`` does to ``x`` ``[N, C, T]`` in training by the batch's statistics; the running ones move as in torch."""
    assert isinstance(norm, BatchNorm1d)
    mean, variance, mean_of_row = _Statistics.apply(x)  # type: ignore[no-untyped-call]
    count = x.shape[0] * x.shape[2]
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return Affine(scale[None], (norm.bias - mean * scale)[None], mean_of_row)


def normalised_elu(x: Tensor, affine: Affine) -> Tensor:
    """ELU of ``x`` ``[N, C, T]`` normalised, in the type of ``x``."""
    return _Elu.apply(x, affine.scale, affine.shift)  # type: ignore[no-untyped-call]


def normalised_sum_elu(x: Tensor, affine: Affine, other: Tensor, other_affine: Affine | None) -> Tensor:
    """ELU of ``x`` normalised plus ``other`` (normalised, if there is an affine for it), ``[N, C, T]``, in the type of ``x``."""
    if other_affine is None:
        one = affine.scale.new_ones(1, 1)
        return _SumElu.apply(x, affine.scale, affine.shift, other, one, one - 1)  # type: ignore[no-untyped-call]
    return _SumElu.apply(x, affine.scale, affine.shift, other, other_affine.scale, other_affine.shift)  # type: ignore[no-untyped-call]


def _slope(before: Tensor) -> Tensor:
    """Of ELU at ``before``."""
    return before.clamp(max=0).exp()


def _summed(values: Tensor, like: Tensor) -> Tensor:
    """Sums along time of ``values`` ``[N, C, T]``, over the rows as well where ``like`` is of all of them ``[1, C]``."""
    along = values.sum(-1)
    return along if like.shape[0] == along.shape[0] else along.sum(0, keepdim=True)


class _Statistics(torch.autograd.Function):
    """Mean and variance ``[C]`` of ``x`` ``[N, C, T]``, and the mean ``[N, C]`` of every row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance_in_row, mean_of_row = torch.var_mean(x.float(), dim=-1, correction=0)
        variance_of_means, mean = torch.var_mean(mean_of_row, dim=0, correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance_in_row.mean(0) + variance_of_means, mean_of_row

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor, to_row: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.shape[0] * x.shape[2]
        spread = (x.float() - mean[:, None]) * (2 / count * to_variance)[:, None]
        return (spread + (to_mean / count)[:, None] + (to_row / x.shape[2])[..., None]).to(x.dtype)


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        return F.elu(x.float() * scale[..., None] + shift[..., None]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, shift = ctx.saved_tensors
        wide = x.float()
        # The operands the other way round than in the forward pass, or the compiler finds what is equal and writes it to memory
        # rather than to compute it again.
        inner = grad.float() * _slope(shift[..., None] + scale[..., None] * wide)
        return (inner * scale[..., None]).to(x.dtype), _summed(inner * wide, scale), _summed(inner, shift)


class _SumElu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, other: Tensor, by: Tensor, plus: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift, other, by, plus)
        both = x.float() * scale[..., None] + shift[..., None] + (other.float() * by[..., None] + plus[..., None])
        return F.elu(both).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, other, by, plus = ctx.saved_tensors
        wide, beside = x.float(), other.float()
        before = shift[..., None] + scale[..., None] * wide + (plus[..., None] + by[..., None] * beside)
        inner = grad.float() * _slope(before)
        normalised = ctx.needs_input_grad[4]
        return (
            (inner * scale[..., None]).to(x.dtype),
            _summed(inner * wide, scale),
            _summed(inner, shift),
            (inner * by[..., None]).to(other.dtype),
            _summed(inner * beside, by) if normalised else None,
            _summed(inner, plus) if normalised else None,
        )
