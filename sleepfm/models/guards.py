"""Figures that show a collapse of representations while it happens. All are detached, in fp32 and scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def embedding_std(x: Tensor) -> Tensor:
    """Mean over features of the standard deviation over rows ``[N, D]`` of unit length, times ``sqrt(D)``:
    about 1 when spread.
    """
    unit = F.normalize(x.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values of the centred ``[N, D]`` (Roy & Vetterli,
    EUSIPCO 2007).
    """
    x = x.float() - x.float().mean(0)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of positive pairs ``[N, D]`` on the sphere (Wang & Isola, arXiv 2005.10242)."""
    return (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()


@torch.no_grad()
def uniformity(x: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of pairs of rows ``[N, D]`` on the sphere (arXiv 2005.10242); 0 for
    fewer than two rows.
    """
    if x.shape[0] < 2:
        return torch.zeros((), device=x.device)
    return torch.pdist(F.normalize(x.float(), dim=1)).square().mul(-2).exp().mean().log()


@torch.no_grad()
def relative_reconstruction(error: Tensor, target: Tensor) -> Tensor:
    """Reconstruction error relative to predicting the mean token of ``target`` ``[..., D]``: below 1 when
    something is learned.
    """
    tokens = target.float().flatten(0, -2)
    return error / tokens.var(dim=0, correction=0).mean().clamp(min=torch.finfo(tokens.dtype).tiny)
