"""Figures that show a collapse of representations while it happens.

All are detached scalars computed in fp32 or wider outside autocast: bf16 cannot tell a collapsed representation from a healthy
one, and CUDA has no eigenvalues in bf16. None raises: of input that is not finite, and where eigenvalues are not found, the
figure is nan, and the step is skipped for its loss.

They cost time, and the effective rank on a GPU a wait for it. So models compute them only while :func:`wanted`, which is always
unless :func:`only_if` says otherwise, as it does for training steps that are not logged.

``rows`` ``[N]`` of a figure says which rows exist; all by default. Of none at all it is nan, and the effective rank 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")

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


def _figure(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """``function`` without gradient and outside autocast."""

    @wraps(function)
    def outside(x: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return outside


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


@_figure
def relative_reconstruction(error: Tensor, target: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean of the reconstruction errors ``[N]`` relative to predicting the mean token of ``target`` ``[N, ..., D]``: below 1 when
    something is learned.
    """
    tokens = target.float().flatten(0, -2)
    each = None if rows is None else rows.repeat_interleave(tokens.shape[0] // rows.shape[0])
    return _mean(error.float(), rows) / _variance(tokens, each).mean().clamp(min=torch.finfo(tokens.dtype).tiny)
