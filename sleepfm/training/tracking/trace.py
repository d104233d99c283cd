"""The loss trace: one JSON line a step, on disk, whatever happens to the tracking server."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sleepfm.errors import DatasetError
from sleepfm.files import write_atomic, writing


def read_trace(path: Path) -> list[dict[str, Any]]:
    """All rows of ``path``; a last line cut short by a kill is left out.

    Raises:
        DatasetError: a line that is no row of a trace, or no file.
    """
    rows, damaged = whole_rows(path)
    if damaged:
        raise DatasetError(
            f"{path}: {damaged} lines are not rows of a trace; the file is damaged, and continuing the run keeps the other rows"
        )
    return rows


def whole_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of ``path`` that can be read, and how many other lines there are; a last one cut short by a kill does not count.

    Raises:
        DatasetError: it is no file that can be read.
    """
    try:
        lines = path.read_bytes().split(b"\n") if os.path.lexists(path) else []
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read as a trace ({error.strerror or error}); move it to another place") from error
    rows, damaged = [], 0
    for line in lines[:-1]:
        row = _row(line)
        if row is None:
            damaged += 1
        else:
            rows.append(row)
    return rows, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class Trace:
    """Appends rows ``{"step": …, "loss": …}`` to ``path``, first cutting off rows after ``step``."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read_trace(path) if row["step"] <= step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, row: dict[str, Any]) -> None:
        """Raises :class:`StorageError` where there is no room: a resumed run drops the row that is cut short."""
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        # What could not be written was said by `append`.
        with contextlib.suppress(OSError):
            self._file.close()
