"""Telling the system, or the store behind a URL, what will be read soon."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import Ranges, ShardReader
from sleepfm.data.report import ReadReport
from sleepfm.errors import ShardError

# Shards that one process fetches at once when it goes through recordings in order.
AT_ONCE = 4


class ReadAhead:
    """Reads ahead in a thread of its own, which lives while there is something to do, what is asked for in order.

    Shuffled items are read in random order; asked for ahead, their shards are read from front to back, once, into
    the page cache of the machine, which all ranks share and which gives way when memory is needed. Of more than
    ``depth`` that wait, the oldest are forgotten: by then they are being read without.
    """

    def __init__(self, dataset: Dataset, report: ReadReport, depth: int) -> None:
        self._reader = ShardReader(dataset, report)
        self._asked: deque[Callable[[], Ranges]] = deque(maxlen=depth)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """A copy elsewhere reads ahead by itself."""
        return ReadAhead, (self._reader.dataset, self._reader.report, self._asked.maxlen)

    def ask(self, ranges: Callable[[], Ranges]) -> None:
        """Read what ``ranges()`` gives, soon."""
        with self._lock:
            self._asked.append(ranges)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="read ahead")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    return
                ranges = self._asked.popleft()
            self._reader.read_ahead(ranges())


def fetching_ahead(dataset: Dataset, records: Sequence[int]) -> Iterator[int]:
    """``records``, rows in shard order; behind a URL, the shards of the next ones are fetched meanwhile, some at once.

    What cannot be had is no error here: it is met again when it is read.
    """
    if dataset.remote is None or not len(records):
        yield from records
        return
    shards = iter(dict.fromkeys(dataset.shard_of[list(records)].tolist()))
    pool = ThreadPoolExecutor(AT_ONCE, "fetching ahead")
    try:
        fetched = deque(pool.submit(_fetch, dataset, shard) for shard in islice(shards, AT_ONCE))
        reached = -1
        for record in records:
            if dataset.shard_of[record] != reached:
                reached = int(dataset.shard_of[record])
                fetched.popleft().result()
                fetched.extend(pool.submit(_fetch, dataset, shard) for shard in islice(shards, 1))
            yield record
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(dataset: Dataset, shard: int) -> None:
    with suppress(ShardError, OSError):
        dataset.shard_file(shard)
