"""Batch normalisation of rows, rows that do not exist, and the small networks of the models that need it.

A batch has a fixed shape, whatever of it exists: which rows do is a mask that stays on the device, and rows that do not exist
weigh nothing in batch statistics. So nothing waits for the device to tell how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` on rows ``[N, D]`` or ``[N, D, L]``, of which some may not exist (:func:`only`).

    Fewer than two rows (of one number a feature) have no spread: in training they are normalised by the running statistics,
    which then stay.
    """

    valid: Tensor | None = None
    """``[N]``, False for rows that do not exist; None where all do. Set by :func:`only`."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and type as ``input``; what rows that do not exist become means nothing."""
        if not self.training or (self.valid is None and input.numel() < 2 * input.shape[1]):
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if self.valid is None:
            return super().forward(input)
        return normalised(self, input, row_statistics(input.detach(), self.valid))


class RowStatistics(NamedTuple):
    """Of the existing rows, in fp64: how many there are (``[]``), their mean ``[D]``, and the sum of their squared distances
    from it ``[D]``.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor


def row_statistics(x: Tensor, valid: Tensor | None) -> RowStatistics:
    """Statistics of ``x`` ``[N, D]`` or ``[N, D, L]`` over the rows where ``valid`` ``[N]``; each of the ``L`` is a row."""
    x, over = x.float(), _rows(x)
    if valid is None:
        rows = x.numel() // x.shape[1]
        count = x.new_full((), rows, dtype=torch.float64)
        if not rows:
            empty = x.new_zeros(x.shape[1], dtype=torch.float64)
            return RowStatistics(count, empty, empty)
        variance, mean = torch.var_mean(x, over, correction=0)
        return RowStatistics(count, mean.double(), variance.double() * rows)
    weight = _weight(valid, x)
    count = valid.sum() * x.shape[2:].numel()
    # About the mean, in two passes, so that nothing cancels.
    mean = (x * weight).sum(over) / count.clamp(min=1)
    squares = ((x - _columns(mean, x)) * weight).square().sum(over)
    return RowStatistics(count.double(), mean.double(), squares.double())


def normalised(
    norm: RowBatchNorm, x: Tensor, statistics: RowStatistics, add_up: Callable[[Tensor], object] | None = None
) -> Tensor:
    """What ``norm`` makes of ``x`` in training by ``statistics``, of which its running ones take their share.

    Args:
        norm: whose ``valid`` says which rows of ``x`` the statistics are of.
        add_up: makes sums over the rows here, in place, those over all rows that ``statistics`` are of; by default, these are
            the rows here.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    count, mean, squares = statistics
    several = count > 1
    variance = torch.where(several, squares / count, norm.running_var.double())
    mean = torch.where(several, mean, norm.running_mean.double())
    with torch.no_grad():
        rate = several * (norm.momentum if norm.momentum is not None else 1 / (norm.num_batches_tracked + 1))
        norm.running_mean.copy_(torch.lerp(norm.running_mean.double(), mean, rate))
        unbiased = torch.where(several, squares / (count - 1).clamp(min=1), variance)
        norm.running_var.copy_(torch.lerp(norm.running_var.double(), unbiased, rate))
        norm.num_batches_tracked += several
    scale = (variance + norm.eps).rsqrt()
    # 0 for one row, whose statistics did not come from itself.
    share = several / count.clamp(min=1)
    out = _Normalise.apply(x, mean.float(), scale.float(), share.float(), norm.valid, add_up)  # type: ignore[no-untyped-call]
    if norm.affine:
        out = out * _columns(norm.weight, out) + _columns(norm.bias, out)
    return out.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """``(x - mean) * scale`` in fp32, where mean and scale depend on the existing rows, a ``share`` of one for each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        share: Tensor,
        valid: Tensor | None,
        add_up: Callable[[Tensor], object] | None,
    ) -> Tensor:
        out = (x.float() - _columns(mean, x)) * _columns(scale, x)
        ctx.save_for_backward(out, scale, share, valid)
        ctx.dtype, ctx.add_up = x.dtype, add_up
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        out, scale, share, valid = ctx.saved_tensors
        sums = torch.stack([grad.sum(_rows(grad)), (grad * out).sum(_rows(grad))]).double()  # [2, D]
        if ctx.add_up is not None:
            ctx.add_up(sums)
        along, against = (sums * share).float()
        through = _columns(along, out) + out * _columns(against, out)
        if valid is not None:
            through = through * _weight(valid, out)
        return ((grad - through) * _columns(scale, out)).to(ctx.dtype), None, None, None, None, None


def _columns(vector: Tensor, like: Tensor) -> Tensor:
    """``[D]`` as ``[1, D]`` or ``[1, D, 1]``."""
    return vector.view(1, -1, *[1] * (like.ndim - 2))


def _weight(valid: Tensor, like: Tensor) -> Tensor:
    """``[N]`` as numbers ``[N, 1]`` or ``[N, 1, 1]``."""
    return valid.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _rows(x: Tensor) -> list[int]:
    """Dimensions that are summed over."""
    return [d for d in range(x.ndim) if d != 1]


@contextmanager
def only(module: nn.Module, valid: Tensor) -> Iterator[None]:
    """Within the block the statistics of every batch norm of ``module``, which sees rows ``[N, ...]``, are those of the rows
    where ``valid`` ``[N]``.
    """
    norms = [part for part in module.modules() if isinstance(part, RowBatchNorm)]
    for norm in norms:
        norm.valid = valid
    try:
        yield
    finally:
        for norm in norms:
            norm.valid = None


def on_valid(module: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """``module``, which takes rows ``[N, D]``, on the rows of ``x`` ``[..., D]`` where ``valid`` ``[...]``; zeros elsewhere.

    Rows that do not exist change nothing, whatever stands there, also in batch statistics.
    """
    if valid is None:
        return module(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    missing = ~valid[..., None]
    with only(module, valid.flatten()):
        found = module(x.masked_fill(missing, 0).flatten(0, -2))
    return found.unflatten(0, x.shape[:-1]).masked_fill(missing, 0)


def by_rows(module: nn.Module) -> None:
    """Replace, in place, every fresh ``nn.BatchNorm1d`` of ``module`` by a :class:`RowBatchNorm`; names stay."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.BatchNorm1d:
                setattr(parent, name, RowBatchNorm(part.num_features, part.eps, part.momentum))


class RowMlp(nn.Sequential):
    """What :func:`mlp` makes."""


def mlp(sizes: Sequence[int]) -> RowMlp:
    """Linear layers ``sizes[0] -> sizes[1] -> ...`` on rows, batch normalisation and ELU after all but the
    last.
    """
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(size_in, size_out), RowBatchNorm(size_out), nn.ELU()]
    return RowMlp(*layers, nn.Linear(sizes[-2], sizes[-1]))
