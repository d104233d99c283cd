"""The loss trace: one JSON line a step, on disk, whatever happens to the tracking server."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from sleepfm.files import write_atomic, writing


def read_trace(path: Path) -> list[dict[str, Any]]:
    """All whole rows of ``path``; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


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
