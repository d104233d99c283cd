"""Batch normalisation of rows, rows that do not exist, and the small networks of the models that need it.

A batch has a fixed shape, whatever of it exists: which rows do is a mask that stays on the device, and rows that do not exist
weigh nothing in batch statistics. So nothing waits for the device to tell how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sleepfm.models.channels_last import BatchNorm1d


class RowBatchNorm(BatchNorm1d):
    """Batch normalisation of rows ``[N, D]`` or ``[N, D, L]``, of which some may not exist (:func:`only`).

    Fewer than two rows (of one number a feature) have no spread: in training they are normalised by the running statistics,
    which then stay.
    """

    valid: Tensor | None = None
    """``[N]``, False for rows that do not exist; None where all do. Set by :func:`only`."""

    @classmethod
    def of(cls, part: _BatchNorm) -> Self:
        """What stands for ``part``, with its parameters, buffers and mode."""
        norm = cls(part.num_features, part.eps, part.momentum)
        norm.weight, norm.bias = part.weight, part.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(part, name))
        return norm.train(part.training)

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and type as ``input``; what rows that do not exist become means nothing."""
        if self.training and self.valid is None and input.numel() < 2 * input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if not self.training or self.valid is None:
            return super().forward(input)
        return normalised(self, input, row_statistics(input.detach(), self.valid))


class RowStatistics(NamedTuple):
    """Of the existing rows: how many there are (``[]``), their mean ``[D]``, and the sum of their squared distances from it
    ``[D]``.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor


def row_statistics(x: Tensor, valid: Tensor | None) -> RowStatistics:
    """Statistics, in fp32 or wider, of ``x`` ``[N, D]`` or ``[N, D, L]`` over the rows where ``valid`` ``[N]``; each of the ``L``
    is a row.
    """
    x, over = _wide(x), _rows(x)
    if valid is None:
        rows = x.numel() // x.shape[1]
        number = x.new_full((), rows)
        if not rows:
            return RowStatistics(number, x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1]))
        variance, mean = torch.var_mean(x, over, correction=0)
        return RowStatistics(number, mean, variance * rows)
    weight = _weight(valid, x)
    number = weight.sum()
    if x.ndim > 2:
        number = number * x.shape[2:].numel()
    # About the mean, in two passes, so that nothing cancels.
    mean = (x * weight).sum(over) / number.clamp(min=1)
    return RowStatistics(number, mean, ((x - _columns(mean, x)) * weight).square().sum(over))


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
    number, mean, squares = statistics
    several = number > 1
    with torch.no_grad():
        # 0 unless there are several rows: running statistics then stay as they are.
        rate = several.to(mean.dtype) * (norm.momentum if norm.momentum is not None else 1 / (norm.num_batches_tracked + 1))
        norm.running_mean.lerp_(mean, rate)
        norm.running_var.lerp_(squares / (number - 1).clamp(min=1), rate)
        norm.num_batches_tracked += several
    mean = torch.where(several, mean, norm.running_mean)
    scale = (torch.where(several, squares / number, norm.running_var) + norm.eps).rsqrt()
    # 0 for one row, whose statistics did not come from itself.
    share = several / number.clamp(min=1)
    return _Normalise.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.bias, mean, scale, share, norm.valid, add_up
    )


class _Normalise(torch.autograd.Function):
    """``(x - mean) * scale * weight + bias``, computed in fp32 or wider, where mean and scale depend on the existing rows, a
    ``share`` of one for each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        share: Tensor,
        valid: Tensor | None,
        add_up: Callable[[Tensor], object] | None,
    ) -> Tensor:
        unit = (_wide(x) - _columns(mean, x)) * _columns(scale, x)
        ctx.save_for_backward(unit, weight, scale, share, valid)
        ctx.dtype, ctx.add_up = x.dtype, add_up
        return torch.addcmul(_columns(bias, x), unit, _columns(weight, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, weight, scale, share, valid = ctx.saved_tensors
        grad, over = _wide(grad), _rows(grad)
        sums = torch.stack([grad.sum(over), (grad * unit).sum(over)])  # [2, D]
        everyone = sums
        if ctx.add_up is not None:
            everyone = sums.to(torch.float64, copy=True)
            ctx.add_up(everyone)
        along, against = (everyone * share).to(sums.dtype)
        through = torch.addcmul(_columns(along, unit), unit, _columns(against, unit))
        if valid is not None:
            through = through * _weight(valid, unit)
        inner = (grad - through) * _columns(scale * weight, unit)
        return inner.to(ctx.dtype), sums[1], sums[0], None, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    """``x`` in fp32, unless it is wider."""
    return x if x.dtype == torch.float64 else x.float()


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


def by_rows(module: nn.Module, kind: type[RowBatchNorm] = RowBatchNorm) -> None:
    """Replace, in place, every batch norm of ``module`` that is no ``kind`` yet by one; parameters, buffers and their names
    stay.
    """
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, _BatchNorm) and not isinstance(part, kind):
                setattr(parent, name, kind.of(part))


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
