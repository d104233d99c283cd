"""The ends of uploads, in threads of the driver, while workers convert the next shards (:mod:`shards.task_folder`)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar

from shards.lease import Builder
from shards.task_folder import Arrived, complete

Item = TypeVar("Item")

# A store answers each within a second or so, mostly by waiting.
_AT_ONCE = 16
_MOST = 4 * _AT_ONCE


class Completing(Generic[Item]):
    """Shards whose tars have arrived in the store below ``out``, each with an item that tells what it is.

    Args:
        builder: must be the one that builds before anything is put.
    """

    def __init__(self, out: Path, builder: Builder | None) -> None:
        self._out = out
        self._check = builder.checks() if builder else lambda: None
        self._pool = ThreadPoolExecutor(_AT_ONCE, "end of an upload")
        self._under_way: dict[Future[bool], Item] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether so many are under way that no more should come: the store is slower than the workers."""
        return len(self) >= _MOST

    def begin(self, item: Item, arrived: Arrived) -> None:
        """See to it that the shard becomes complete."""
        self._under_way[self._pool.submit(complete, self._out, arrived, self._check)] = item

    def ended(self, seconds: float) -> Iterator[tuple[Item, Future[bool]]]:
        """Those that have ended, and what :func:`shards.task_folder.complete` said, waiting so long for the first."""
        for future in wait(self._under_way, seconds, FIRST_COMPLETED).done:
            yield self._under_way.pop(future), future

    def close(self) -> None:
        """Begin no more of them, and wait for those that have begun: nothing is put any more once this has returned."""
        self._pool.shutdown(cancel_futures=True)
