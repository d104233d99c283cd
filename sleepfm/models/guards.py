"""Figures that show a collapse of representations while it happens.

All are detached scalars computed in fp32 or wider outside autocast: bf16 cannot tell a collapsed representation from a healthy
one, and CUDA has no eigenvalues in bf16. None raises: of input that is not finite, and where eigenvalues are not found, the
figure is nan, and the step is skipped for its loss.

They cost time, and the effective rank on a GPU a wait for it. So models compute them only while :func:`wanted`, which is always
unless :func:`only_if` says otherwise, as it does for training steps that are not logged.

``rows`` ``[N]`` of a figure says which rows exist; all by default. Of none at all it is nan, and the effective rank 1.

Figures are of the rows of all ranks together, so that they are those of one process with the whole batch: the rank of few rows is
small whatever the model does. Of more than :data:`ROWS` rows as many are taken at even distances. Every rank must call with the
same ``N``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from sleepfm.models.negatives import compared

P = ParamSpec("P")

# At least as many are looked at, and fewer than twice as many; pairs of them are formed.
ROWS = 1024

_wanted = True


def wanted() -> bool:
    """Whether a model is to give these figures beside its loss."""
    return _wanted


@contextmanager
def only_if(condition: bool) -> Iterator[None]:
    """Within the block :func:`wanted` is ``condition``."""
    global _wanted
    before, _wanted = _wanted, condition
    try:
        yield
    finally:
        _wanted = before


def _detached(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """``function`` without gradient and outside autocast."""

    @wraps(function)
    def outside(x: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return outside


def _figure(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` of rows of all ranks, without gradient and outside autocast."""

    @wraps(function)
    def of_all(*rows: Tensor | None) -> Tensor:
        return function(*(part if part is None else _of_all_ranks(part) for part in rows))

    return _detached(of_all)


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of every rank in order, at even distances if they are many."""
    ranks, count = compared("global"), rows.shape[0]
    step = max(1, count * ranks.size // ROWS)
    first = [-rank * count % step for rank in range(ranks.size)]
    counts = [len(range(start, count, step)) for start in first]
    own = rows[first[ranks.rank] :: step]
    if min(counts) == max(counts):
        return ranks.gather(own)
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own
    everyone = ranks.gather(padded).unflatten(0, (ranks.size, -1))
    return torch.cat([part[:held] for part, held in zip(everyone, counts, strict=True)])


def _sum_over_ranks(values: Tensor) -> Tensor:
    if compared("global").size > 1:
        dist.all_reduce(values)
    return values


def _mean(x: Tensor, rows: Tensor | None) -> Tensor:
    """Mean of ``x`` ``[N, ...]`` over existing ``rows``: ``[...]``."""
    if rows is None:
        return x.mean(0)
    weight = rows.view(-1, *[1] * (x.ndim - 1))
    return torch.where(weight, x, 0).sum(0) / weight.sum()


def _variance(x: Tensor, rows: Tensor | None) -> Tensor:
    """Variance of ``x`` ``[N, D]`` over existing ``rows``: ``[D]``."""
    return _mean((x - _mean(x, rows)).square(), rows)


@_figure
def embedding_std(x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean over features of the standard deviation over rows ``[N, D]`` of unit length, times ``sqrt(D)``:
    about 1 when spread.
    """
    return _variance(F.normalize(x.float(), dim=1), rows).sqrt().mean() * x.shape[1] ** 0.5


@_figure
def effective_rank(x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Exponential of the entropy of the normalised singular values of the centred ``[N, D]`` (Roy & Vetterli,
    EUSIPCO 2007).

    The Gram matrix squares the singular values, hence fp64: in fp32 the rounding of a collapsed one would count as directions.
    """
    x = x.double() if rows is None else torch.where(rows[:, None], x.double(), 0)
    finite = x.isfinite().all()
    # Eigenvalues of what is not finite are an error in LAPACK and cuSOLVER.
    x = torch.where(finite, x, 0.0)
    x = x - _mean(x, rows)
    if rows is not None:
        x = torch.where(rows[:, None], x, 0)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    try:
        singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    except torch.linalg.LinAlgError:
        return torch.full((), torch.nan, device=x.device)
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.special.entr(share).sum().exp()
    return torch.where(finite, rank, torch.nan).float()


@_figure
def alignment(a: Tensor, b: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean squared distance of positive pairs ``[N, D]`` on the sphere (Wang & Isola, arXiv 2005.10242)."""
    return _mean((F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1), rows)


@_figure
def uniformity(x: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of pairs of rows ``[N, D]`` on the sphere (arXiv 2005.10242); 0 for
    fewer than two rows.
    """
    if x.shape[0] < 2:
        return torch.zeros((), device=x.device)
    return torch.pdist(F.normalize(x.float(), dim=1)).square().mul(-2).exp().mean().log()


@_detached
def relative_reconstruction(error: Tensor, target: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean of the reconstruction errors ``[N]`` relative to predicting the mean token of ``target`` ``[N, ..., D]``: below 1 when
    something is learned.

    Of all rows of all ranks, by their sums in fp64.
    """
    weight = torch.ones_like(error, dtype=torch.float64) if rows is None else rows.double()
    tokens = target.double().reshape(target.shape[0], -1, target.shape[-1])  # [N, T, D]
    share = weight[:, None, None]
    sums = torch.where(share > 0, tokens, 0.0).sum((0, 1))
    errors = torch.where(weight > 0, error.double(), 0.0).sum()
    held, wrong, total = _sum_over_ranks(torch.cat([weight.sum()[None], errors[None], sums])).split([1, 1, len(sums)])
    number = held * tokens.shape[1]
    squares = torch.where(share > 0, (tokens - total / number).square(), 0.0).sum((0, 1))
    variance = (_sum_over_ranks(squares) / number).mean()
    return (wrong[0] / held[0] / variance.clamp(min=torch.finfo(torch.float32).tiny)).float()
