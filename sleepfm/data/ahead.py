"""Telling the system, or the store behind a URL, what will be read soon."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from sleepfm.constants import CHANNELS
from sleepfm.data.cache import CachedShard
from sleepfm.data.dataset import Dataset, ShardFile
from sleepfm.data.fetch import NoRoomError
from sleepfm.data.format import QUALITY_MEMBER
from sleepfm.data.ranges import NOTHING, Index, Ranges, member_ranges, together
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import stored_labels
from sleepfm.data.report import ReadReport
from sleepfm.data.runs import plan_ahead
from sleepfm.errors import DatasetError, ShardError

# Shards behind a URL that are fetched ahead of recordings which are gone through in order.
AT_ONCE = 4
ROOM_SECONDS = 0.1


@dataclass(eq=False)
class _Stretch:
    """Shards that are read at positions before ``until``; ``held`` keeps them in the cache."""

    shards: tuple[int, ...]
    until: int
    held: list[ShardFile | CachedShard] = field(default_factory=list)


class ReadAhead:
    """Reads ahead in a thread of its own, which lives while there is something to do, what is asked for in order.

    Shuffled items are read in random order; asked for ahead, their shards are read from front to back, once, into
    the page cache of the machine, which all ranks share and which gives way when memory is needed. Of more than
    ``depth`` that wait, the oldest are forgotten: by then they are being read without.

    Of shards behind a URL the ranges are fetched into the cache, and kept there until the positions at which they are read are
    passed. What there is no room for waits until others are done with theirs.
    """

    def __init__(self, dataset: Dataset, report: ReadReport, depth: int) -> None:
        self._reader = ShardReader(dataset, report)
        self._asked: deque[tuple[_Stretch, Callable[[], Ranges]]] = deque(maxlen=depth)
        self._kept: list[_Stretch] = []
        self._position = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """A copy elsewhere reads ahead by itself."""
        return ReadAhead, (self._reader.dataset, self._reader.report, self._asked.maxlen)

    def ask(self, shards: Iterable[int], ranges: Callable[[], Ranges], until: int) -> None:
        """Read what ``ranges()`` gives of ``shards``, soon; it is needed at positions before ``until``."""
        with self._lock:
            stretch = _Stretch(tuple(shards), until)
            self._asked.append((stretch, ranges))
            self._kept.append(stretch)
            if self._thread is None:
                thread = threading.Thread(target=_work, args=(weakref.ref(self), self._reader), daemon=True, name="read ahead")
                self._thread = thread
                self._thread.start()

    def passed(self, position: int, reader: ShardReader) -> None:
        """Positions from ``position`` on are read next: what is needed only at others need not be kept, also by ``reader``."""
        with self._lock:
            # Somebody who goes back begins anew.
            done = [one for one in self._kept if one.until <= position or position < self._position]
            self._position = position
            self._kept = [one for one in self._kept if one not in done]
            needed = {shard for one in self._kept for shard in one.shards}
            for one in done:
                one.held.clear()
        for one in done:
            reader.release(set(one.shards) - needed)

    def next(self) -> tuple[_Stretch, Callable[[], Ranges]] | None:
        """What is to be read now, for the thread; nothing ends it."""
        with self._lock:
            if self._asked:
                return self._asked.popleft()
            self._thread = None
            return None

    def hold(self, stretch: _Stretch, file: ShardFile | CachedShard) -> None:
        """Keep ``file`` in the cache for as long as ``stretch`` is needed."""
        with self._lock:
            if stretch in self._kept:
                stretch.held.append(file)

    def needs(self, stretch: _Stretch) -> bool:
        """Whether ``stretch`` has not been passed."""
        return stretch in self._kept


def _work(whose: weakref.ref[ReadAhead], reader: ShardReader) -> None:
    """What the thread of a :class:`ReadAhead` does, which ends with that object: it may be waiting for room."""
    while (ahead := whose()) and (asked := ahead.next()):
        # Nothing here may keep the one who asked alive while room is waited for.
        stretch, plan = asked
        ranges = NOTHING
        with suppress(DatasetError):
            ranges = plan()
        del asked, plan
        if reader.dataset.remote is None:
            reader.read_ahead(ranges)
            reader.release(stretch.shards)
            continue
        for shard in stretch.shards:
            with suppress(ShardError):
                ahead.hold(stretch, reader.dataset.shard_file(shard))
        while ahead and ahead.needs(stretch):
            del ahead
            failed = reader.fetch(ranges, at_once=False)
            waiting = [shard for shard, error in failed.items() if isinstance(error, NoRoomError)]
            if not waiting:
                break
            ranges = Ranges(*(values[np.isin(ranges.shard, waiting)] for values in ranges))
            time.sleep(ROOM_SECONDS)
            ahead = whose()


def fetching_ahead(
    dataset: Dataset,
    records: Sequence[int],
    channels: Sequence[str] = (),
    labels: Sequence[str] = (),
    reader: ShardReader | None = None,
) -> Iterator[int]:
    """``records``, rows in shard order; behind a URL, what is read of the next shards is fetched meanwhile, some at once.

    What cannot be had is no error here: it is met again when it is read.

    Args:
        channels: that are read, with their checksums; the quality of the recordings always is.
        labels: tasks, or stored labels, that are read.
        reader: what reads them, of which shards that were passed are closed.
    """
    if dataset.remote is None or not len(records):
        yield from records
        return
    rows = np.asarray(records)
    numbers = np.array([CHANNELS.index(channel) for channel in channels], np.int64)
    members = stored_labels(labels)
    parts = iter(np.split(rows, np.flatnonzero(np.diff(dataset.shard_of[rows])) + 1))
    pool = ThreadPoolExecutor(AT_ONCE, "fetching ahead")
    try:
        fetched = deque(pool.submit(_fetch, dataset, part, numbers, members) for part in islice(parts, AT_ONCE))
        reached, held = -1, None
        for record in records:
            if dataset.shard_of[record] != reached:
                if reader is not None:
                    reader.release([reached])
                reached = int(dataset.shard_of[record])
                held = fetched.popleft().result()  # in the cache until the next one is reached
                fetched.extend(pool.submit(_fetch, dataset, part, numbers, members) for part in islice(parts, 1))
            yield record
        del held
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(dataset: Dataset, rows: Index, channels: Index, members: Sequence[str]) -> ShardFile | CachedShard | None:
    """Fetch what is read of ``rows``, recordings of one shard; the shard, open, so that it stays in the cache."""
    with suppress(ShardError):
        shard = dataset.shard_file(int(dataset.shard_of[rows[0]]))
        at, column = np.nonzero(dataset.present[rows[:, None], channels])
        small = member_ranges(dataset, rows, (QUALITY_MEMBER, *members))
        signals = plan_ahead(dataset, rows[at], channels[column]) if len(at) else small
        ShardReader(dataset).fetch(together(signals, small), at_once=False)
        return shard
    return None
