"""Telling the system, or the store behind a URL, what will be read soon."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import Ranges, ShardReader
from sleepfm.data.report import ReadReport


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
