"""Reading what comes next while what was read before is worked on."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch

from sleepfm.data.batch import Batch
from sleepfm.data.report import SLOW_SECONDS, ReadReport, report_of
from sleepfm.data.transfer import Transfer
from sleepfm.data.worker_pool import ShardSource, WorkerPool

log = logging.getLogger(__name__)
T = TypeVar("T")
CPU = torch.device("cpu")


class Source(Protocol):
    """Anything with positions, such as the streams."""

    def batch(self, start: int, count: int) -> Batch: ...


class _End:
    """The end of what is read, or the error there."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Ahead(Generic[T]):
    """Iterates over ``items``, which one thread reads ahead; at most ``depth`` wait.

    An error of ``items`` is raised where it would have come. Use as a context manager, or close. What does not come is
    reported while it is waited for, with the shards that are being read as ``report`` knows them: a read that hangs
    would never report itself.
    """

    def __init__(self, items: Iterable[T], depth: int = 2, report: ReadReport | None = None) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._report = report
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        found = self._get()
        if not isinstance(found, _End):
            return found
        self.close()
        if found.error is None:
            raise StopIteration
        raise found.error

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._stop.set()
        self._thread.join()

    def _get(self) -> T | _End:
        began = time.perf_counter()
        patience = self._report.slow_seconds if self._report else SLOW_SECONDS
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=patience)
            except queue.Empty:
                busy = self._report.reading() if self._report else ""
                log.warning("no data for %.0f s; being read: %s", time.perf_counter() - began, busy or "nothing")
        return _End(None)

    def _work(self, items: Iterable[T]) -> None:
        end = _End(None)
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            end = _End(error)
        self._put(end)

    def _put(self, value: T | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Prefetcher(Ahead[Batch]):
    """The batches of ``plan`` (start, count) of ``stream`` on ``device``, at most ``depth`` of them ahead.

    ``workers`` processes read them, or the thread, where it is 0 and for a source that reads nothing from shards. Copies to a
    GPU run while it computes.
    """

    def __init__(
        self,
        stream: Source,
        plan: Iterable[tuple[int, int]],
        depth: int = 2,
        device: torch.device = CPU,
        workers: int = 0,
    ) -> None:
        self._transfer = Transfer(device) if device.type != "cpu" else None
        take = self._transfer.begin if self._transfer else None
        self._pool: WorkerPool[Batch] | None = None
        if workers and isinstance(stream, ShardSource):
            self._pool = WorkerPool(stream, plan, workers, take or Batch.clone)
        read = (stream.batch(start, count) for start, count in plan)
        batches: Iterable[Batch] = self._pool or (map(take, read) if take else read)
        super().__init__(batches, depth, report_of(stream))

    def __next__(self) -> Batch:
        batch = super().__next__()
        return self._transfer.arrived(batch) if self._transfer else batch

    def close(self) -> None:
        """Stop reading ahead and end the thread and the processes."""
        self._stop.set()
        if self._pool is not None:
            self._pool.close()
        super().close()
