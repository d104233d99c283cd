"""A bounded folder of shards that were fetched from elsewhere, shared by all processes of a node.

A file appears under its name only when it is whole and its SHA-256 is right. While it is fetched it is ``NAME.part``,
which has its full size from the beginning (so that it counts) and is locked by the process that fetches: others
wait for that lock instead of fetching it again, and a part that nobody locks is what a killed process left, and is
removed. Whoever needs room removes the shards that were asked for longest ago; a process that has one open reads on,
because an unlinked file lives as long as it is open.

The folder may hold other things: they neither count nor are they removed. The cache's own folders are those with its marker, and
in them only files with names of shards are ever removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sleepfm.errors import ConfigError, ShardError

PART = ".part"
LOCK = ".lock"
MARKER = ".sleepfm-cache"
_SHARD = re.compile(r"shard-[0-9]{6,}\.tar")
_SHARD_PART = re.compile(rf"{_SHARD.pattern}{re.escape(PART)}")
WAIT_SECONDS = 0.05
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


class FileCache:
    """At most ``limit`` bytes of files below ``folder``; safe for any number of processes and threads of one machine.

    ``NAME`` is ``SET/…``. What else lies in the folder of a data set (its manifest) counts, but only shards are removed to make
    room.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    @staticmethod
    def from_environment() -> FileCache:
        """In ``$SLEEPFM_CACHE`` (else the user's cache folder), of ``$SLEEPFM_CACHE_GIB`` (else 64) GiB.

        Raises:
            ConfigError: the size is not a positive number.
        """
        return FileCache(cache_folder(), bytes_from_environment(LIMIT_VARIABLE, DEFAULT_GIB))

    def get(self, name: str, size: int, sha256: str, source: Callable[[], Iterable[bytes]]) -> Path:
        """The path of file ``name`` (relative, with slashes), fetched from ``source()`` if it is not there.

        Raises:
            ShardError: ``source`` gives anything but ``size`` bytes of that ``sha256``, or the folder cannot be
                written to or is limited to less than ``size``.
            Exception: whatever ``source`` raises; it should not be an ``OSError``.
        """
        path = self.folder / name
        if size > self.limit:
            raise ShardError(
                f"{name}: {size} bytes do not fit the cache {self.folder} of {self.limit} bytes; set {LIMIT_VARIABLE} higher"
            )
        try:
            self.claim(Path(name).parts[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._own_part(path, size) as handle:
                if handle is not None:
                    part = path.with_name(path.name + PART)
                    self._reserve(part, handle, size)
                    _fill(handle, name, size, sha256, source())
                    part.replace(path)
        except OSError as error:
            raise ShardError(
                f"{path}: cannot keep a copy here ({error.strerror or error}); make room, or set {FOLDER_VARIABLE}"
            ) from error
        return path

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
            raise ShardError(f"{folder}: holds files that this cache has not made; move it away, or set {FOLDER_VARIABLE}")
        marker.touch()

    def discard(self, name: str) -> None:
        """Forget a file, so that the next :meth:`get` fetches it again."""
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _own_part(self, path: Path, size: int) -> Iterator[int | None]:
        """The locked part of ``path``, or None if the whole file is there, maybe after waiting for another process."""
        part = path.with_name(path.name + PART)
        while not _present(path, size):
            with _locked(part) as handle:
                # Whoever held it before may have renamed or removed it: then the lock is on a file without that name.
                if not _names(part, handle):
                    continue
                try:
                    yield None if _present(path, size) else handle
                finally:
                    if _names(part, handle):
                        part.unlink(missing_ok=True)
                return
        yield None

    def _reserve(self, part: Path, handle: int, size: int) -> None:
        """Give ``part`` its full size as soon as there is room, removing what was asked for longest ago."""
        while True:
            with _locked(self.folder / LOCK):
                if self._make_room(size, part):
                    os.truncate(handle, size)
                    return
            # Other parts fill the folder. They become whole files, which can be removed.
            time.sleep(WAIT_SECONDS)

    def _files(self) -> Iterator[Path]:
        """Every file in the folders that are the cache's own; links are not followed."""
        for marker in filter(Path.is_file, self.folder.glob(f"*/{MARKER}")):
            for place, _, names in os.walk(marker.parent):
                yield from (path for name in names if not (path := Path(place) / name).is_symlink())

    def _make_room(self, size: int, own: Path) -> bool:
        files: list[tuple[float, int, Path]] = []
        used, fetching = 0, False
        for path in self._files():
            with suppress(FileNotFoundError):
                found = path.stat()
                if path == own:
                    continue
                if _SHARD_PART.fullmatch(path.name) and _abandoned(path):
                    path.unlink()
                    continue
                fetching |= path.name.endswith(PART)
                used += found.st_size
                if _SHARD.fullmatch(path.name):
                    files.append((found.st_mtime, found.st_size, path))
        for _, bytes_, path in sorted(files, key=lambda file: file[0]):
            if used + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            used -= bytes_
        if used + size > self.limit and not fetching:
            raise ShardError(
                f"{self.folder}: manifests leave no room for {size} bytes of {self.limit}; set {LIMIT_VARIABLE} higher"
            )
        return used + size <= self.limit


def _present(path: Path, size: int) -> bool:
    """Is the whole file there; if so, it counts as just asked for."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


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


def _abandoned(part: Path) -> bool:
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _fill(handle: int, name: str, size: int, sha256: str, chunks: Iterable[bytes]) -> None:
    hashed, done = hashlib.sha256(), 0
    for chunk in chunks:
        if done + len(chunk) > size:
            raise ShardError(f"{name}: more bytes came than the {size} of the manifest")
        hashed.update(chunk)
        view = memoryview(chunk)
        while view:
            written = os.pwrite(handle, view, done)
            view, done = view[written:], done + written
    if done != size:
        raise ShardError(f"{name}: {done} bytes came, the manifest says {size}")
    if hashed.hexdigest() != sha256:
        raise ShardError(f"{name}: its SHA-256 is not the manifest's")
    # The name must not appear before the bytes do, also after a power cut.
    os.fsync(handle)
