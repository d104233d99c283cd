"""Reading the next batch while the step runs."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from sleepfm.data.batch import Batch
from sleepfm.data.report import SLOW_SECONDS, report_of

log = logging.getLogger(__name__)


class Source(Protocol):
    """Anything with positions, such as the streams."""

    def batch(self, start: int, count: int) -> Batch: ...


class Prefetcher:
    """Iterates over the batches of ``plan`` (start, count), read ahead by one thread; at most ``depth`` wait.

    An error of the stream is raised where its batch would have come. Use as a context manager, or close. A batch
    that does not come is reported while it is waited for, with the shards that are being read: a read that hangs
    would never report itself.
    """

    def __init__(self, stream: Source, plan: Iterable[tuple[int, int]], depth: int = 2, pin: bool = False) -> None:
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._report = report_of(stream)
        self._thread = threading.Thread(target=self._work, args=(stream, plan, pin), daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        found = self._get()
        if isinstance(found, Batch):
            return found
        self.close()
        if found is None:
            raise StopIteration
        raise found

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._stop.set()
        self._thread.join()

    def _get(self) -> Batch | BaseException | None:
        began = time.perf_counter()
        patience = self._report.slow_seconds if self._report else SLOW_SECONDS
        while True:
            try:
                return self._queue.get(timeout=patience)
            except queue.Empty:
                busy = self._report.reading() if self._report else ""
                log.warning("no data for %.0f s; being read: %s", time.perf_counter() - began, busy or "nothing")

    def _work(self, stream: Source, plan: Iterable[tuple[int, int]], pin: bool) -> None:
        end: BaseException | None = None
        try:
            for start, count in plan:
                batch = stream.batch(start, count)
                if not self._put(batch.pin() if pin else batch):
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            end = error
        self._put(end)

    def _put(self, value: Batch | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
