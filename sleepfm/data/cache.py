"""A bounded folder of blocks of shards that lie elsewhere, shared by all processes of a node.

Of a shard there is one file, ``NAME.blocks``: the blocks that were fetched, each at its place, holes elsewhere, and behind
them a map that says which blocks are there. A block is marked in the map when it is on the disk, so that neither a killed
process nor a power cut leaves a block that counts and is none.

Whoever has such a file open holds a shared lock on it, and so keeps it from being removed. Room is made by removing files that
nobody has open, those that were used longest ago first. Where these do not suffice, whoever needs bytes at once removes files
that are open: their readers notice, and fetch again.

The folder may hold other things: they neither count nor are they removed. The cache's own folders are those with its marker, and
in them only files with names of shards are ever removed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import ConfigError, ShardError

Index = NDArray[np.int64]

BLOCK = 4096
BLOCKS = ".blocks"
LOCK = ".lock"
MARKER = ".sleepfm-cache"
# Whole shards and parts of them are what former versions kept.
_SHARD = re.compile(rf"shard-[0-9]{{6,}}\.tar({re.escape(BLOCKS)}|\.part)?")
# The map begins where any machine can map memory; before it stands the version of the shard.
_ALIGNMENT = 2**16
_VERSION_BYTES = 1024
_ABSENT, _PRESENT = b"\0", b"\1"
FOLDER_VARIABLE = "SLEEPFM_CACHE"
LIMIT_VARIABLE = "SLEEPFM_CACHE_GIB"
DEFAULT_GIB = 64.0


def cache_folder() -> Path:
    """Where a node keeps what it has fetched: ``$SLEEPFM_CACHE``, else ``sleepfm`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(home) / "sleepfm")


def bytes_from_environment(variable: str, default_gib: float) -> int:
    """The size that an environment variable states in GiB.

    Raises:
        ConfigError: it is not a positive number.
    """
    text = os.environ.get(variable, str(default_gib))
    try:
        size = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"environment variable {variable}={text!r}: expected a number of GiB above 0")
    return size


class CachedShard:
    """The blocks of one shard, open for reading at ``handle`` and kept from being removed as long as this object lives."""

    def __init__(self, path: Path, handle: int, size: int) -> None:
        self.path = path
        self.handle = handle
        self.size = size
        offset, length = _map_place(size)
        self._map = mmap.mmap(handle, length, offset=offset)

    def __del__(self) -> None:
        if hasattr(self, "_map"):
            self._map.close()
        os.close(self.handle)

    @property
    def version(self) -> str:
        """What tells the object that the blocks came from; empty where that is not known."""
        return self._map[:_VERSION_BYTES].rstrip(b"\0").decode()

    @version.setter
    def version(self, version: str) -> None:
        self._map[:_VERSION_BYTES] = version.encode()[:_VERSION_BYTES].ljust(_VERSION_BYTES, b"\0")

    @property
    def removed(self) -> bool:
        """Whether another process needed its room."""
        return os.fstat(self.handle).st_nlink == 0

    def holds(self, begin: int, end: int) -> bool:
        """Whether the bytes ``begin .. end`` are there."""
        return self._map.find(_ABSENT, _VERSION_BYTES + begin // BLOCK, _VERSION_BYTES - (-end // BLOCK)) < 0

    def absent(self) -> NDArray[np.bool_]:
        """Which blocks are not there, [B]."""
        return np.frombuffer(self._map[_VERSION_BYTES : _VERSION_BYTES - (-self.size // BLOCK)], np.uint8) == 0

    def mark(self, begin: int, end: int, present: bool = True) -> None:
        """Note that the blocks of ``begin .. end`` are there, or that they are not to be used."""
        first, last = begin // BLOCK, -(-end // BLOCK)
        self._map[_VERSION_BYTES + first : _VERSION_BYTES + last] = (_PRESENT if present else _ABSENT) * (last - first)

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Keep every other process and thread from fetching of this shard meanwhile."""
        lock = self.path.with_name(self.path.name + LOCK)
        while True:
            with _locked(lock) as handle:
                # Whoever held it before may have removed it: then the lock is on a file without that name.
                if _names(lock, handle):
                    yield
                    return


class BlockCache:
    """At most ``limit`` bytes of files below ``folder``; safe for any number of processes and threads of one machine.

    ``NAME`` is ``SET/…``. What else lies in the folder of a data set (its manifest) counts, but only shards are removed to make
    room.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    @staticmethod
    def from_environment() -> BlockCache:
        """In ``$SLEEPFM_CACHE`` (else the user's cache folder), of ``$SLEEPFM_CACHE_GIB`` (else 64) GiB.

        Raises:
            ConfigError: the size is not a positive number.
        """
        return BlockCache(cache_folder(), bytes_from_environment(LIMIT_VARIABLE, DEFAULT_GIB))

    def open(self, name: str, size: int) -> CachedShard:
        """The shard ``name`` (relative, with slashes) of ``size`` bytes, without a block if it is new here.

        Raises:
            ShardError: the folder cannot be written to.
        """
        path = self.folder / (name + BLOCKS)
        try:
            self.claim(Path(name).parts[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            # Files are made and removed under this lock.
            with _locked(self.folder / LOCK):
                return CachedShard(path, _opened(path, sum(_map_place(size))), size)
        except OSError as error:
            raise _cannot_keep(path, error) from error

    def reserve(self, shard: CachedShard, begin: Index, end: Index, at_once: bool) -> bool:
        """Take room for the blocks of ``begin .. end`` [N] of ``shard``; false where there is none.

        Args:
            at_once: remove also shards that are open, which their readers then fetch again.

        Raises:
            ShardError: the disk is full, or there would be no room ``at_once`` if all other shards were removed.
        """
        place, length = _map_place(shard.size)
        if not os.fstat(shard.handle).st_blocks:
            begin, end = np.append(begin, place), np.append(end, place + length)
        need = int((-(-(end - begin) // BLOCK) * BLOCK).sum())
        try:
            with _locked(self.folder / LOCK):
                if not self._make_room(shard.path, need, at_once):
                    return False
                for first, last in zip(begin.tolist(), end.tolist(), strict=True):
                    # Counts from now on, and a full disk shows before anything is fetched.
                    os.posix_fallocate(shard.handle, first, last - first)
        except OSError as error:
            raise _cannot_keep(shard.path, error) from error
        return True

    def claim(self, data_set: str) -> None:
        """Make the folder of a data set, and mark it as the cache's own.

        Raises:
            ShardError: there is a folder of that name that the cache has not made.
            OSError: it cannot be made.
        """
        folder = self.folder / data_set
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        # In this order: another process may be making it. A folder of that name is somebody else's.
        if not marker.is_file() and any(folder.iterdir()) and not marker.is_file():
            raise ShardError(
                f"{folder}: contains files that this cache did not write; move the folder away, or set {FOLDER_VARIABLE}"
            )
        marker.touch()

    def discard(self, name: str) -> None:
        """Forget all blocks of a shard, also for those who have it open."""
        with _locked(self.folder / LOCK):
            _remove(self.folder / (name + BLOCKS))

    def used(self) -> int:
        """Bytes that the cache takes on its disk, while nothing is made or removed."""
        if not self.folder.is_dir():
            return 0
        with _locked(self.folder / LOCK):
            return sum(bytes_ for _, bytes_, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each file in the folders that are the cache's own was used, and its bytes on the disk; links are not followed."""
        found = []
        for marker in filter(Path.is_file, self.folder.glob(f"*/{MARKER}")):
            for place, _, names in os.walk(marker.parent):
                for name in names:
                    path = Path(place) / name
                    with suppress(FileNotFoundError):
                        state = path.lstat()
                        if not path.is_symlink():
                            found.append((state.st_mtime, state.st_blocks * 512, path))
        return sorted(found, key=lambda file: file[0])

    def _make_room(self, own: Path, need: int, at_once: bool) -> bool:
        files = self._files()
        used = sum(bytes_ for _, bytes_, _ in files)
        removable = [(bytes_, path) for _, bytes_, path in files if path != own and _SHARD.fullmatch(path.name)]
        for also_open in (False, True) if at_once else (False,):
            for bytes_, path in removable:
                if used + need <= self.limit:
                    return True
                if bytes_ and (also_open or _nobody_has_open(path)):
                    _remove(path)
                    used -= bytes_
            removable = [(bytes_, path) for bytes_, path in removable if path.exists()]
        if used + need > self.limit and at_once:
            raise ShardError(
                f"{self.folder}: {need} bytes beside {used} bytes in use exceed the limit of {self.limit} bytes; set "
                f"{LIMIT_VARIABLE} higher"
            )
        return used + need <= self.limit


def _map_place(size: int) -> tuple[int, int]:
    """Where the map of a shard of ``size`` bytes lies in its file, and how many bytes it has."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT, _VERSION_BYTES - (-size // BLOCK)


def _opened(path: Path, size: int) -> int:
    """A handle of the file, made with ``size`` bytes if need be, that keeps it from being removed."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            found = os.fstat(handle).st_size
            if found == 0:
                os.ftruncate(handle, size)
            elif found != size:
                # Of another size is what no data set of this digest has: it is made anew.
                _remove(path)
                os.close(handle)
                continue
            fcntl.flock(handle, fcntl.LOCK_SH)
            os.utime(handle)
        except OSError:
            os.close(handle)
            raise
        return handle


def _nobody_has_open(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + LOCK).unlink(missing_ok=True)


def _cannot_keep(path: Path, error: OSError) -> ShardError:
    return ShardError(f"{path}: cannot keep a copy here ({error.strerror or error}); make room, or set {FOLDER_VARIABLE}")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """``path``, made if need be, locked against all other openings of it. Not by name: see :func:`_names`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _names(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
