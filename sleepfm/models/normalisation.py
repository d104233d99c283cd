"""Batch normalisation of rows, rows that do not exist, and the small networks of the models that need it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class RowBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` on rows ``[N, D]`` that takes a batch of one (or none) in training, by running
    statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def on_valid(module: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """``module``, which takes rows, on the rows of ``x`` ``[B, L, D]`` where ``valid`` ``[B, L]``; zeros elsewhere.

    Rows that do not exist then take no part in batch statistics.
    """
    if valid is None:
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    found = module(x[valid])
    return found.new_zeros(*x.shape[:2], found.shape[-1]).index_put((valid,), found)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers ``sizes[0] -> sizes[1] -> ...`` on rows, batch normalisation and ELU after all but the
    last.
    """
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(size_in, size_out), RowBatchNorm(size_out), nn.ELU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
