"""Batch normalisation over the rows of all ranks: what one process computes on the whole batch.

torch's ``SyncBatchNorm`` runs on CUDA only, takes a rank without rows for an error, and every row for one that exists. Here ranks
may hold any number of existing rows, also none, on any device.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleepfm.models.normalisation import RowBatchNorm, RowStatistics, by_rows, normalised, row_statistics


def synchronise(module: nn.Module) -> None:
    """Have every batch norm of ``module``, in place, take the statistics of all ranks."""
    by_rows(module, SynchronisedBatchNorm)


class SynchronisedBatchNorm(RowBatchNorm):
    """Rows ``[N, D]`` or ``[N, D, L]``, normalised in training by the statistics of all ranks.

    Every rank must call it equally often, in the same order, and pass its output on to the loss, also where it holds no rows: a
    training step gathers in the forward pass and in the backward pass. Where there is but one row altogether, it is normalised
    by the running statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and type as ``input``."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        return normalised(self, input, _of_all_ranks(row_statistics(input.detach(), self.valid)), dist.all_reduce)


def _of_all_ranks(own: RowStatistics) -> RowStatistics:
    """The statistics of the rows of all ranks.

    Each rank's sums are about its own mean, so that nothing cancels (Chan, Golub & LeVeque 1983); they are gathered, and joined
    in fp64 in the order of ranks, so that every rank gets the same numbers.
    """
    flat = torch.cat([own.number[None], own.mean, own.squares]).double()
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    size = len(own.mean)
    counts, means, squares = torch.stack(everyone).split([1, size, size], dim=1)  # [W, 1], [W, D], [W, D]
    count = counts.sum()
    mean = (counts * means).sum(0) / count.clamp(min=1)
    joined = RowStatistics(count, mean, (squares + counts * (means - mean).square()).sum(0))
    return RowStatistics(*(part.to(own.mean.dtype) for part in joined))
