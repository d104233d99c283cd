"""Files by path or by URL: the one place that knows whether bytes come from a disk or from an object store.

A URL (``s3://bucket/key``) is whatever fsspec has a file system for; credentials and endpoints are those of its
usual configuration and environment. A file at a URL is read in ranges, each fetched once into a sparse temporary
file, so that memory holds one range whatever the size of the file, and decoding ten signals is one download.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeGuard, cast

from sleepfm.errors import ConfigError, UsageError
from sleepfm.signals.denied import is_denied

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_RANGE_BYTES = 1 << 22
# Characters of which a glob pattern takes one, without ranges and complements.
_CLASS = re.compile(r"\[([^\]!-][^\]-]*)\]")
_MOST_NAMES = 16
# Packages behind the protocols in common use, where fsspec's own message would leave the reader to look them up.
_EXTRAS = {"s3": "'.[s3]'", "s3a": "'.[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class RemoteError(OSError):
    """What an object store or web server answered instead of the bytes; an :class:`OSError` as a disk's would be."""


class IgnoredRangeError(RemoteError):
    """A server that sends a whole file where a part was asked for."""


class DeniedError(RemoteError, PermissionError):
    """What a store does not give to whoever asks: asking again does not help."""


class FileState(NamedTuple):
    """What tells a file from one that has taken its place: ``size`` in bytes, and ``version``, which changes with its content.

    The version is the time of the last change on disk and the tag (ETag) in a store; empty where a store gives none.
    """

    size: int
    version: str


class RandomFile(Protocol):
    """A file that is read at any place, inside a ``with`` block. Blocks may stand inside one another; it is opened once."""

    def __enter__(self) -> RandomFile: ...

    def __exit__(self, *error: object) -> None: ...

    @property
    def size(self) -> int:
        """Bytes in the file."""
        ...

    def state(self) -> FileState:
        """What it is now, for which a file on disk need not be opened. Raises :class:`OSError`."""
        ...

    def read(self, start: int, length: int, keep: bool = True) -> bytes:
        """``length`` bytes from ``start``, fewer at the end of the file. Raises :class:`OSError`.

        Without ``keep`` no more than these bytes is asked of a URL, and none is kept for further reads.
        """
        ...


def location(path: str | os.PathLike[str]) -> Path:
    """``path`` as a path, or as fsspec's path-like object where it is a URL; both have pathlib's interface.

    Raises:
        ConfigError: a protocol that is unknown or whose package is not installed, or a URL with one slash.
    """
    text = os.fspath(path) if isinstance(path, (str, Path)) else str(path)
    match = _URL.match(text)
    if match is None:
        if isinstance(path, str) and _URL_AS_PATH.match(text) and not os.path.lexists(text):
            raise ConfigError(f"{text}: there is no such path; a URL needs two slashes: {text.replace(':/', '://', 1)}")
        return path if isinstance(path, Path) else Path(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    _require_protocol(text, match["protocol"])
    if not isinstance(path, str):
        return cast(Path, path)
    from upath import UPath

    # Typed as Path, whose reading interface it has; it is none, so that nothing takes it for a file on disk.
    return cast(Path, UPath(text))


def is_path(value: object) -> TypeGuard[str | Path]:
    """Whether ``value`` is a path or a URL, as text or as an object of :mod:`pathlib` or fsspec."""
    # Paths of a store are no `os.PathLike`, and have a suffix like all of them.
    return isinstance(value, str) or hasattr(value, "suffix")


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """``path``, to which something is written, and which must not be a URL; ``what`` is the argument or key that states it.

    Raises:
        UsageError: a URL, which the file system would take for a folder called ``s3:``.
    """
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    # A Path has made one slash of two.
    if _URL.match(text) or (isinstance(path, Path) and _URL_AS_PATH.match(text)):
        raise UsageError(
            f"{what} {text}: is a URL, but results can only be written to a disk; give a local folder or one on a shared disk"
        )
    return Path(text)


def is_remote(path: Path) -> bool:
    """Whether ``path`` is a URL."""
    return not isinstance(path, Path)


def refresh(path: Path) -> None:
    """Forget what was listed of a store before, so that what was added since is found."""
    if is_remote(path):
        with answering(path):
            cast(Any, path).fs.invalidate_cache()


def random_file(path: Path, spool: bool = True) -> RandomFile:
    """The file at ``path``, opened on entering a ``with`` block, to be read in ranges.

    Args:
        spool: keep what is fetched from a URL on disk for further reads; without it, each read is one request.
    """
    return _RemoteFile(path, spool) if is_remote(path) else _LocalFile(path)


def read_start(path: Path, length: int) -> bytes:
    """The first ``length`` bytes of the file. Raises :class:`OSError`."""
    with random_file(path, spool=False) as file:
        return file.read(0, length)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes. Raises :class:`OSError`."""
    return size_and_sha256(path)[1]


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Bytes in the file, and their hexadecimal SHA-256. Raises :class:`OSError`."""
    digest = hashlib.sha256()
    with random_file(path, spool=False) as file:
        for start in range(0, file.size, _RANGE_BYTES):
            digest.update(file.read(start, _RANGE_BYTES))
        return file.size, digest.hexdigest()


def file_size(path: Path) -> int:
    """Bytes in the file. Raises :class:`OSError`."""
    if not is_remote(path):
        return path.stat().st_size
    with answering(path):
        return int(cast(Any, path).fs.size(cast(Any, path).path))


def is_file(path: Path) -> bool:
    """Whether there is a file at ``path``. Raises :class:`OSError` where that cannot be told."""
    with answering(path):
        return path.is_file()


def is_folder(path: Path) -> bool:
    """Whether there is a folder (a prefix of keys) at ``path``. Raises :class:`OSError` where that cannot be told."""
    with answering(path):
        return path.is_dir()


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """Files that the glob ``pattern``, relative to ``folder``, matches, sorted. Raises :class:`OSError`."""
    if not is_remote(folder):
        # A folder of thousands is not listed for each of its files where a few names are all that can match.
        if (names := _names(pattern)) is not None:
            found = {os.stat(folder / name).st_ino: folder / name for name in names if os.path.isfile(folder / name)}
            return sorted(found.values())
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    with answering(folder):
        if not re.search(r"[*?\[]", pattern):
            path = folder / pattern
            return [path] if path.is_file() else []
        return sorted(path for path in folder.glob(pattern) if path.is_file())


def _names(pattern: str) -> list[str] | None:
    """All names that a glob pattern matches, where these are few: its only wild cards are characters in brackets."""
    parts = _CLASS.split(pattern)
    if any(re.search(r"[*?\[]", literal) for literal in parts[::2]) or math.prod(map(len, parts[1::2])) > _MOST_NAMES:
        return None
    choices = [part if number % 2 else (part,) for number, part in enumerate(parts)]
    return sorted({"".join(chosen) for chosen in itertools.product(*choices)})


def relative_name(path: Path, root: Path) -> str:
    """``path`` relative to ``root``, with slashes."""
    return str(path).removeprefix(str(root).rstrip("/") + "/") if is_remote(path) else path.relative_to(root).as_posix()


def name_below(path: Path | str, folder: Path | None) -> str:
    """``path`` relative to ``folder``, with slashes, where it lies below it; else whole."""
    return str(path) if folder is None else str(path).removeprefix(str(folder).rstrip("/") + "/")


class _LocalFile:
    """A regular file on disk; nothing else is opened, so that a pipe or device of that name cannot hang a reader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._blocks = 0
        self.size = 0

    def __enter__(self) -> _LocalFile:
        if not self._blocks:
            self._open()
        self._blocks += 1
        return self

    def _open(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ValueError as error:
            raise OSError(f"{error} in its name") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError("not a regular file")
        self._descriptor, self.size = descriptor, status.st_size

    def __exit__(self, *error: object) -> None:
        self._blocks -= 1
        if not self._blocks:
            os.close(self._descriptor)

    def state(self) -> FileState:
        status = os.fstat(self._descriptor) if self._blocks else os.stat(self._path)
        return FileState(status.st_size, str(status.st_mtime_ns))

    def read(self, start: int, length: int, keep: bool = True) -> bytes:
        return os.pread(self._descriptor, length, start)


class MemoryFile:
    """The whole content of a file that was read before, when it had this ``state``."""

    def __init__(self, content: bytes, state: FileState | None = None) -> None:
        self._content = content
        self._state = state or FileState(len(content), "")
        self.size = len(content)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def state(self) -> FileState:
        return self._state

    def read(self, start: int, length: int, keep: bool = True) -> bytes:
        return self._content[start : start + length]

    def view(self, start: int, length: int) -> memoryview:
        """What :meth:`read` gives, without a copy."""
        return memoryview(self._content)[start : start + length]


class _RemoteFile:
    """A file at a URL. Its ranges live on disk as long as this object does, and nowhere in the file system."""

    def __init__(self, path: Path, spool: bool) -> None:
        self._path = path
        self._spool = spool
        self._file: BinaryIO | None = None
        self._ranges: BinaryIO | None = None
        self._present: set[int] = set()
        self._blocks = 0
        self.size = 0

    def __enter__(self) -> _RemoteFile:
        if self._file is None:
            with answering(self._path):
                try:
                    file = self._open()
                except FileNotFoundError:
                    # An earlier listing may be what does not know it.
                    refresh(self._path)
                    file = self._open()
                if file.size is None or not file.seekable():
                    raise RemoteError("its server does not tell its size or does not serve ranges; download it first")
                self.size = int(file.size)
            self._file = file
            if self._spool:
                self._ranges = tempfile.TemporaryFile(prefix="sleepfm-")
        self._blocks += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._blocks -= 1
        if not self._spool and not self._blocks and self._file is not None:
            self._file.close()
            self._file = None

    def state(self) -> FileState:
        with self:
            details = getattr(self._file, "details", None) or {}
            return FileState(self.size, str(details.get("ETag") or details.get("etag") or ""))

    def _open(self) -> Any:
        base = cast(Any, self._path)
        return base.fs.open(base.path, "rb", cache_type="none", block_size=_RANGE_BYTES)

    def read(self, start: int, length: int, keep: bool = True) -> bytes:
        stop = min(start + length, self.size)
        if start >= stop:
            return b""
        if self._ranges is None or not keep:
            return self._fetch(start, stop)
        for number in range(start // _RANGE_BYTES, -(-stop // _RANGE_BYTES)):
            if number not in self._present:
                first = number * _RANGE_BYTES
                os.pwrite(self._ranges.fileno(), self._fetch(first, min(first + _RANGE_BYTES, self.size)), first)
                self._present.add(number)
        return os.pread(self._ranges.fileno(), stop - start, start)

    def _fetch(self, start: int, stop: int) -> bytes:
        assert self._file is not None
        with answering(self._path):
            self._file.seek(start)
            data = self._file.read(stop - start)
        if len(data) > stop - start:
            raise IgnoredRangeError(
                f"its server sent {len(data)} bytes when {stop - start} were asked for; fetch it to a disk first"
            )
        if len(data) != stop - start:
            raise RemoteError(f"{len(data)} bytes came of the {stop - start} from {start}; it changed, or the connection broke")
        return data


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Turns what the client of a remote store raises, of which little is an :class:`OSError`, into one.

    Only calls into that client stand inside.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        if is_denied(error):
            raise DeniedError(" ".join(f"{error or type(error).__name__}".split())) from error
        if isinstance(error, OSError):
            raise
        raise RemoteError(f"{type(error).__name__}: {error}") from error


def _require_protocol(url: str, protocol: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = _EXTRAS.get(protocol)
        install = f"pip install {package}" if package else "install it"
        raise ConfigError(f"{url}: {protocol}:// needs a package that is not installed ({error}); {install}") from error
    except ValueError as error:
        raise ConfigError(f"{url}: {protocol}:// is not a protocol that fsspec supports; give a path or another URL") from error
