"""Files of the output folder that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sleepfm.errors import ShardError

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends without an error, and vanishes otherwise.

    Its temporary name is unique, so that a forgotten worker of an earlier build cannot write into it.

    Raises:
        ShardError: the folder cannot be written to (full disk, permissions); what was whole before stays whole.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with writing(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of writing ``path`` into a :class:`ShardError`."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{path}: cannot write ({error.strerror or error}); make room and run the same command again, "
            "what is finished is kept"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON with sorted keys, atomically.

    ASCII alone: a file name that is no UTF-8 is read back as the same bytes.
    """
    with atomic_file(path) as file:
        file.write(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left in ``folder``."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
