"""Long work of a job that all of its ranks share: validation, embedding a cohort, evaluating what is exported.

Every rank takes a run of consecutive items, of about the same cost, so that ranks read different shards; results come to rank 0
in the order of the items, whatever the number of ranks. What an item gives must not depend on the items around it: figures are
then the same on any number of ranks, up to what another number of threads rounds differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from sleepfm.errors import SleepFMError
from sleepfm.models import guards
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.distributed import World, agree, gather_tensors, on_main
from sleepfm.training.ranks.precision import autocast

T = TypeVar("T")


def share_of(costs: Sequence[int], rank: int, size: int) -> range:
    """The items that ``rank`` of ``size`` takes, of items with these ``costs``: consecutive ones, all ranks together every item
    once, none more than an equal share of the cost and one item.
    """
    total = sum(costs)
    # By the middle of each item on the line of all costs.
    middles = [2 * end - cost for cost, end in zip(costs, accumulate(costs), strict=True)]
    owners = [min(middle * size // max(2 * total, 1), size - 1) for middle in middles]
    begin = sum(owner < rank for owner in owners)
    return range(begin, begin + owners.count(rank))


class SharedWork:
    """How the ranks of a job share long work. Every rank has one and calls its methods alike.

    Args:
        world: this process among the others.
        dtype: of the arithmetic, ``fp32`` or ``bf16`` (under autocast, as in training).
        observer: is told how far the work has come.
        device: where the work is done; this process's own by default.
    """

    def __init__(
        self, world: World, dtype: str = "fp32", observer: Observer | None = None, device: torch.device | None = None
    ) -> None:
        self.world, self.dtype, self.observer, self._device = world, dtype, observer or Observer(), device

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self._device or self.world.device

    def precision(self) -> AbstractContextManager[Any]:
        """What a forward pass of this work runs in."""
        return autocast(self.device, self.dtype)

    def each(
        self, what: str, costs: Sequence[int], work: Callable[[range], Iterable[tuple[Tensor, ...]]]
    ) -> list[tuple[Tensor, ...]]:
        """What ``work`` gives for every item, in their order, on rank 0; nothing on the others.

        Args:
            what: the work in words, for the watchdog.
            costs: of the items, by which they are divided.
            work: gives tensors for each of the items that this rank takes, in their order. It runs without gradients, in
                :meth:`precision`; tensors on the CPU.

        Raises:
            SleepFMError: what ``work`` raised here, or :class:`TrainingError` where it raised on another rank; on every rank.
        """
        share = share_of(costs, self.world.rank, self.world.size)
        own: list[tuple[Tensor, ...]] = []
        failure: SleepFMError | None = None
        self.observer.goes_on(f"{what}, 0 of {len(share)}")
        try:
            # Guards are of all ranks together, and here each does work of its own.
            with torch.no_grad(), self.precision(), guards.only_if(False):
                for tensors in work(share):
                    own.append(tensors)
                    self.observer.goes_on(f"{what}, {len(own)} of {len(share)}")
        except SleepFMError as error:
            failure = error
        agree(self.world, failure)
        return gather_tensors(self.world, own)

    def goes_on(self) -> None:
        """Within work that is long for one item of :meth:`each`: it has come further."""
        self.observer.goes_on()

    def on_main(self, work: Callable[[], T]) -> T:
        """``work`` by rank 0 while the others wait; its result (plain JSON types), or its error, on every rank."""
        return on_main(self.world, work)

    def only_on_main(self, work: Callable[[], T]) -> T | None:
        """``work`` by rank 0 while the others wait; its result there and None elsewhere, or its error on every rank."""
        results: list[T] = []
        on_main(self.world, lambda: results.append(work()))
        return results[0] if results else None


ALONE = SharedWork(World(0, 1, 0, 1))
