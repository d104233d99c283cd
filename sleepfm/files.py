"""Files that are whole or absent, whatever happens while they are written.

They are written under a hidden temporary name in their own folder, flushed to the disk and renamed, so that a kill or a power cut
leaves what was there before. Temporary names are unique: a forgotten process of an earlier job cannot write into them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sleepfm.errors import StorageError

TEMPORARY_SUFFIX = ".tmp"
DAMAGED_PREFIX = "damaged-"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of writing ``path`` into a :class:`StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); make room or repair the folder, then run the same "
            "command again: what is finished is kept"
        ) from error


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, unless they are there.

    Raises:
        StorageError: it cannot be made.
    """
    check_folder(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Raises :class:`StorageError` where :func:`make_folder` would because of a file, before the work."""
    with writing(folder):
        there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
        if there.exists() and not there.is_dir():
            raise StorageError(f"{there}: a file of that name is in the way of a folder; move it away, or give another folder")


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A free path that becomes the file ``path`` when the block ends without an error, and vanishes otherwise.

    Args:
        durable: whether it is to survive a power cut, which waits for the disk.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    try:
        with writing(path):
            yield temporary
            if durable:
                sync_file(temporary)
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """:func:`atomic_path`, opened to write bytes."""
    with atomic_path(path, durable) as temporary, temporary.open("xb") as file:
        yield file


def write_atomic(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write ``content`` (text as UTF-8) to ``path``, whose folder is made if need be; ``durable`` as for :func:`atomic_path`.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is still there.
    """
    make_folder(path.parent)
    with atomic_file(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, compact: bool = False, durable: bool = True) -> None:
    """Write ``value`` as JSON, atomically; ``compact`` for large ones, whose bytes do not depend on the order of keys either.

    ASCII alone: a file name that is no UTF-8 is read back as the same bytes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":")) if compact else json.dumps(value, indent=1) + "\n"
    write_atomic(path, text, durable)


def read_json(path: Path) -> Any | None:
    """The JSON in ``path``, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def sync_file(path: Path) -> None:
    """Make the content of ``path`` survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Give the damaged file or folder ``path`` a name under which nobody looks for it: ``damaged-NAME``, or ``damaged-NAME-2``.

    Raises:
        StorageError: it cannot be renamed.
    """
    number, aside = 1, path.with_name(f"{DAMAGED_PREFIX}{path.name}")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{DAMAGED_PREFIX}{path.name}-{number}")
    with writing(aside):
        path.rename(aside)
        sync_folder(path.parent)
    return aside


def temporaries(folder: Path, names: str) -> list[Path]:
    """What killed writers may have left in ``folder`` of files whose names match ``names``, a regular expression.

    Only names that :func:`atomic_path` gives; a hidden file of somebody else's that ends in ``.tmp`` is none.
    """
    pattern = re.compile(rf"\.(?:{names})\.[0-9a-f]{{12}}{re.escape(TEMPORARY_SUFFIX)}")
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink()]


def remove_temporaries(folder: Path, names: str) -> None:
    """Delete :func:`temporaries`."""
    for path in temporaries(folder, names):
        path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
