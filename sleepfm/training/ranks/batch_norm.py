"""Batch normalisation over the rows of all ranks: what one process computes on the whole batch.

torch's ``SyncBatchNorm`` runs on CUDA only and takes a rank without rows for an error. Here ranks may hold any number of rows,
also none (epochs without a channel hold no rows), on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(module: nn.Module) -> None:
    """Replace, in place, every batch norm of ``module``; parameters, buffers and their names stay."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, _BatchNorm):
                setattr(parent, name, SynchronisedBatchNorm(part))


class SynchronisedBatchNorm(_BatchNorm):
    """Takes over ``part``: rows ``[N, D]`` or ``[N, D, L]``, normalised in training by the statistics of all ranks.

    Every rank must call it equally often, in the same order, and pass its output on to the loss, also where it holds no rows: a
    training step gathers in the forward pass and in the backward pass. Where there is but one row altogether, it is normalised
    by the running statistics.
    """

    def __init__(self, part: _BatchNorm) -> None:
        super().__init__(part.num_features, part.eps, part.momentum, part.affine, part.track_running_stats)
        self.weight, self.bias = part.weight, part.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(part, name))
        self.train(part.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 3):
            raise ValueError(f"expected rows [N, D] or [N, D, L], found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and type as ``input``."""
        self._check_input_dim(input)
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        count, mean, squares = _statistics(input.detach())
        several = count > 1
        variance = torch.where(several, squares / count, self.running_var.double())
        mean = torch.where(several, mean, self.running_mean.double())
        with torch.no_grad():
            rate = several * (self.momentum if self.momentum is not None else 1 / (self.num_batches_tracked + 1))
            self.running_mean.copy_(torch.lerp(self.running_mean.double(), mean, rate))
            unbiased = torch.where(several, squares / (count - 1).clamp(min=1), variance)
            self.running_var.copy_(torch.lerp(self.running_var.double(), unbiased, rate))
            self.num_batches_tracked += several
        scale = (variance + self.eps).rsqrt()
        # 0 for one row, whose statistics did not come from itself.
        share = several / count.clamp(min=1)
        out = _Normalise.apply(input, mean.float(), scale.float(), share.float())  # type: ignore[no-untyped-call]
        if self.affine:
            out = out * _columns(self.weight, out) + _columns(self.bias, out)
        return out.to(input.dtype)


def _columns(vector: Tensor, like: Tensor) -> Tensor:
    """``[D]`` as ``[1, D]`` or ``[1, D, 1]``."""
    return vector.view(1, -1, *[1] * (like.ndim - 2))


def _rows(x: Tensor) -> list[int]:
    """Dimensions that are summed over."""
    return [d for d in range(x.ndim) if d != 1]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over all ranks: the number of rows, their mean ``[D]``, and the sum of their squared distances from it ``[D]``, in fp64.

    Each rank's sums are about its own mean, so that nothing cancels (Chan, Golub & LeVeque 1983); they are gathered, and joined
    in the order of ranks, so that every rank gets the same numbers.
    """
    x = x.float()
    rows = x.numel() // x.shape[1]
    own = x.new_zeros(2 * x.shape[1] + 1, dtype=torch.float64)
    if rows:
        variance, mean = torch.var_mean(x, _rows(x), correction=0)
        own = torch.cat([own.new_tensor([rows]), mean.double(), variance.double() * rows])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    counts, means, squares = torch.stack(everyone).split([1, x.shape[1], x.shape[1]], dim=1)  # [W, 1], [W, D], [W, D]
    count = counts.sum()
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


class _Normalise(torch.autograd.Function):
    """``(x - mean) * scale`` in fp32, where mean and scale depend on the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, share: Tensor) -> Tensor:
        out = (x.float() - _columns(mean, x)) * _columns(scale, x)
        ctx.save_for_backward(out, scale, share)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out, scale, share = ctx.saved_tensors
        sums = torch.stack([grad.sum(_rows(grad)), (grad * out).sum(_rows(grad))]).double()  # [2, D]
        dist.all_reduce(sums)
        along, against = (sums * share).float()
        inner = grad - _columns(along, out) - out * _columns(against, out)
        return (inner * _columns(scale, out)).to(ctx.dtype), None, None, None
