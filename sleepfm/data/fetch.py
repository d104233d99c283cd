"""Blocks of a shard behind a URL, fetched into its file in the cache: few requests, large ones, several at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sleepfm.data.cache import BLOCK, BlockCache, CachedShard, Index
from sleepfm.errors import ShardError
from sleepfm.signals.files import DeniedError, IgnoredRangeError, RandomFile, location, random_file, refresh

log = logging.getLogger(__name__)
T = TypeVar("T")
Flags = NDArray[np.bool_]

ATTEMPTS = 3
FIRST_PAUSE = 0.5
# What one request asks for at most, and what is fetched together before it counts.
REQUEST_BYTES = 2**22
GROUP_BYTES = 2**24
# Blocks this near are asked for in one request, with what lies between them.
GAP_BYTES = 2**13
# Requests that a process has under way; with their size, the bound of its memory.
IN_FLIGHT = 16

_in_flight = threading.BoundedSemaphore(IN_FLIGHT)


class UnavailableError(ShardError):
    """What cannot be had from behind a URL; asking again does not help."""


class MissingError(UnavailableError):
    """There is no such file behind a URL."""


class RefusedError(UnavailableError):
    """A store that does not let these credentials read."""


class NoRoomError(ShardError):
    """The cache has no room but that of shards that are being read."""


class OutdatedError(ShardError):
    """The blocks in the cache are of an object that is not behind the URL any more."""


class RemoteObject:
    """One shard behind a URL, for any number of threads. ``version`` tells it from one that takes its place (its ETag)."""

    def __init__(self, url: str, size: int, asking: Callable[[], AbstractContextManager[None]]) -> None:
        """``asking`` is entered around every request for bytes."""
        self.url = url
        self._size = size
        self._asking = asking
        self._idle: list[RandomFile] = []
        self._version: str | None = None
        self._lock = threading.Lock()

    def version(self) -> str:
        """The version of the object, asked for once; empty where the store tells none. Raises as :meth:`read`."""
        if self._version is None:
            with_patience(self._touch)
        return self._version or ""

    def changed(self, other: str) -> bool:
        """Whether the object has become ``other``."""
        return self._version is not None and bool(other) and other != self._version

    def confirm(self) -> None:
        """Ask the store whether the object is still the one that was opened. Raises as :meth:`read`."""
        self.close()
        refresh(location(self.url))
        with_patience(self._touch)

    def close(self) -> None:
        """Give back what is not in use; reading goes on to work."""
        with self._lock:
            idle, self._idle = self._idle, []
        for file in idle:
            file.__exit__()

    def read(self, begin: int, end: int) -> bytes:
        """The bytes ``begin .. end``.

        Raises:
            MissingError: there is no such object.
            UnavailableError: it is not of the size that the manifest says, it was replaced since it was first opened here, or its
                server gives no ranges.
            ShardError: it could not be read, after some attempts.
        """
        return with_patience(partial(self._read, begin, end))

    def _touch(self) -> None:
        with self._reading():
            pass

    def _read(self, begin: int, end: int) -> bytes:
        with self._asking(), self._reading() as file:
            return file.read(begin, end - begin)

    @contextmanager
    def _reading(self) -> Iterator[RandomFile]:
        """The object, opened for this thread; a file that fails is not used again."""
        try:
            with self._lock:
                file = self._idle.pop() if self._idle else None
            file = file or self._open()
            try:
                yield file
            except BaseException:
                file.__exit__()
                raise
            with self._lock:
                self._idle.append(file)
        except FileNotFoundError as error:
            raise MissingError(f"{self.url}: missing; restore it or build again") from error
        except IgnoredRangeError as error:
            raise UnavailableError(f"{self.url}: {error}") from error
        except DeniedError as error:
            raise RefusedError(refused(self.url, error)) from error
        except OSError as error:
            # It may have been replaced: then the next attempt must not go by what was known of it.
            refresh(location(self.url))
            raise ShardError(f"{self.url}: cannot be read ({error})") from error

    def _open(self) -> RandomFile:
        file = random_file(location(self.url), spool=False).__enter__()
        try:
            size, version = file.state()
            if size != self._size:
                raise UnavailableError(f"{self.url}: {size} bytes, the manifest says {self._size}; restore it or build again")
            with self._lock:
                self._version = version if self._version is None else self._version
            if version != self._version:
                raise UnavailableError(
                    f"{self.url}: replaced while it was read (version {self._version} before, {version} now); "
                    "restore it, or stop and open the data set again"
                )
        except BaseException:
            file.__exit__()
            raise
        return file


def fetch_blocks(cache: BlockCache, shard: CachedShard, remote: RemoteObject, begin: Index, end: Index, at_once: bool) -> None:
    """Have the bytes ``begin .. end`` [N] of ``remote`` in ``shard``.

    Args:
        at_once: they are needed now, and other shards in the cache must give way.

    Raises:
        NoRoomError: not ``at_once``, and there is no room.
        OutdatedError: the blocks of ``shard`` are another object's.
        ShardError: as :meth:`RemoteObject.read` and :meth:`BlockCache.reserve`.
    """
    wanted = np.zeros(-(-shard.size // BLOCK), np.bool_)
    for first, last in zip(begin.tolist(), end.tolist(), strict=True):
        wanted[first // BLOCK : -(-last // BLOCK)] = True
    while (wanted & shard.absent()).any():
        with shard.fetching():
            # Another process may have fetched them meanwhile.
            first, last = requests(wanted, shard.absent(), shard.size)
            if not len(first):
                return
            if shard.version != (version := remote.version()):
                if shard.version:
                    remote.confirm()
                    raise OutdatedError(f"{shard.path}: of version {shard.version}, {remote.url} is {version} now")
                shard.version = version
            if not cache.reserve(shard, first, last, at_once):
                raise NoRoomError(f"{cache.folder}: no room for {int((last - first).sum())} bytes")
            _fetch(shard, remote, first, last)


def requests(wanted: Flags, absent: Flags, size: int) -> tuple[Index, Index]:
    """The next requests for blocks that are ``wanted`` and ``absent``, [B] bool each, of a shard of ``size`` bytes: bytes
    ``begin`` and ``end``, [N] each, a group in all.
    """
    begin, end = _stretches(wanted & absent)
    if not len(begin):
        return begin, end
    # What is there is not fetched again for the sake of a larger request.
    there = np.concatenate([[0], np.cumsum(~absent)])
    apart = np.concatenate([[True], (begin[1:] - end[:-1] > GAP_BYTES // BLOCK) | (there[begin[1:]] > there[end[:-1]])])
    starts = np.flatnonzero(apart)
    found = []
    for first, last in zip(begin[starts].tolist(), end[np.append(starts[1:], len(end)) - 1].tolist(), strict=True):
        for at in range(first * BLOCK, last * BLOCK, REQUEST_BYTES):
            found.append((at, min(at + REQUEST_BYTES, last * BLOCK, size)))
    pairs = np.array(found, np.int64)
    together = np.cumsum(pairs[:, 1] - pairs[:, 0])
    pairs = pairs[: max(1, int(np.searchsorted(together, GROUP_BYTES, side="right")))]
    return pairs[:, 0], pairs[:, 1]


def _stretches(flags: Flags) -> tuple[Index, Index]:
    """First and behind the last of each stretch of true ``flags``."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _fetch(shard: CachedShard, remote: RemoteObject, begin: Index, end: Index) -> None:
    done: list[tuple[int, int]] = []

    def one(first: int, last: int) -> None:
        with _in_flight:
            view, at = memoryview(remote.read(first, last)), first
            while view:
                written = os.pwrite(shard.handle, view, at)
                view, at = view[written:], at + written
        done.append((first, last))

    try:
        in_parallel([partial(one, first, last) for first, last in zip(begin.tolist(), end.tolist(), strict=True)], IN_FLIGHT)
    finally:
        if done:
            os.fdatasync(shard.handle)
            for first, last in done:
                shard.mark(first, last)


def in_parallel(jobs: Sequence[Callable[[], object]], most: int) -> None:
    """Do ``jobs``, at most ``most`` of them at once; raises what the first that failed raised, when all under way have ended.

    In threads that do not keep a process from ending, as those of an executor would until the store answers.
    """
    left = iter(jobs)
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                job = next(left, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:  # raised where the jobs were given
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True, name="fetching") for _ in range(min(most, len(jobs)) - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def refused(url: str, error: DeniedError) -> str:
    """What to say where a store does not let these credentials read ``url``."""
    return (
        f"{url}: the store does not let these credentials read it ({error}); give them the right to list and to read objects, or "
        "give others by the environment of this process"
    )


def with_patience(attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns; networks fail and come back. Raises :class:`ShardError` as ``attempt`` does at last."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except UnavailableError:
            raise
        except ShardError as error:
            if number == ATTEMPTS - 1:
                raise
            log.warning("%s; trying again", error)
            time.sleep(FIRST_PAUSE * 4**number)
    raise AssertionError("unreachable")
