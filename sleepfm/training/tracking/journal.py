"""Figures on their way to the tracking server: a file in the run's folder, and how far it has been delivered.

A row is ``{"step": …, "time": ms, "figures": {name: value}}``, one JSON line, written before it is sent. Delivered rows stay:
a server that has lost the run is given all of it again. Every figure is kept once a step: what a resumed run computes again
after a kill is not a second figure.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm.files import atomic_file, set_aside, write_atomic, writing

Row = dict[str, Any]

# Some 500,000 rows: weeks of a run, at most a few figures a second.
LARGEST_BYTES = 256 * 2**20


class Journal:
    """Appended to by any thread, read by the one that delivers.

    A full disk does not stop training: rows wait in memory (:attr:`waiting`) and are written as soon as there is room. Beyond
    ``largest`` bytes delivered rows are dropped from the file; if there are none, new rows are refused and counted in
    :attr:`refused` (the loss trace still holds the losses). A file with lines that are no rows is set aside as ``damaged-…``; its
    rows stay, and :attr:`damaged` counts the lines.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path, largest: int = LARGEST_BYTES) -> None:
        self._path = path
        self._largest = largest
        self._lock = threading.Lock()
        self._last_step: dict[str, int] = {}
        self.waiting: list[bytes] = []
        self.refused = 0
        self.problem = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.size, self.damaged = self._scan()
        if self.damaged:
            self._set_damage_aside()

    def _scan(self) -> tuple[int, int]:
        """Size of the whole lines, and how many of them are no rows. A last line cut short by a kill is cut off. Learns the last
        step of every figure.
        """
        whole = damaged = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._descriptor, whole)
                    break
                whole += len(line)
                row = _row(line)
                if row is None:
                    damaged += 1
                    continue
                if "rewound" in row:
                    self._forget_after(row["rewound"])
                last: dict[str, int] = row.get("last") or dict.fromkeys(row["figures"], int(row["step"]))
                for name, step in last.items():
                    self._last_step[name] = max(step, self._last_step.get(name, step))
        return whole, damaged

    def _set_damage_aside(self) -> None:
        """Begin a file with the rows of this one, which gets another name."""
        os.close(self._descriptor)
        with set_aside(self._path).open("rb") as file, atomic_file(self._path) as mended:
            mended.writelines(line for line in file if _row(line) is not None)
        self._descriptor = os.open(self._path, os.O_RDWR)
        self.size = self._path.stat().st_size

    def begins_row(self, start: int) -> bool:
        """Whether a row begins at byte ``start``, or the next one will."""
        return start == 0 or (0 < start <= self.size and os.pread(self._descriptor, 1, start - 1) == b"\n")

    def append(self, step: int, milliseconds: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of ``step`` that are not kept yet. One write to the page cache; never raises for the disk."""
        with self._lock:
            fresh = {name: float(value) for name, value in figures.items() if step > self._last_step.get(name, step - 1)}
            if not fresh:
                return
            self._last_step |= dict.fromkeys(fresh, step)
            line = json.dumps({"step": step, "time": milliseconds, "figures": fresh}).encode() + b"\n"
            if self.size + sum(map(len, self.waiting)) + len(line) > self._largest:
                self.refused += 1
                return
            self.waiting.append(line)
            self._write()

    def rewind(self, step: int) -> None:
        """From here on figures of steps after ``step`` are kept again: the run goes on from there with other settings."""
        with self._lock:
            self._forget_after(step)
            self.waiting.append(json.dumps({"step": 0, "time": 0, "figures": {}, "rewound": step}).encode() + b"\n")
            self._write()

    def _forget_after(self, step: int) -> None:
        self._last_step = {name: min(last, step) for name, last in self._last_step.items()}

    def _write(self) -> None:
        """Write what waits behind the last whole line, or keep it waiting."""
        text = b"".join(self.waiting)
        try:
            if os.pwrite(self._descriptor, text, self.size) == len(text):
                self.size += len(text)
                self.waiting.clear()
                self.problem = ""
                return
            self.problem = f"{self._path}: no room left"
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}"

    def sync(self) -> None:
        """Try again to write what waits, and make the file survive a power cut."""
        with self._lock:
            if self.waiting:
                self._write()
            os.fsync(self._descriptor)

    def read(self, start: int, figures: int) -> tuple[list[Row], int]:
        """Rows from byte ``start`` with at most ``figures`` figures in all (or one row), and where the next one starts."""
        rows: list[Row] = []
        count = 0
        with self._path.open("rb") as file:
            file.seek(start)
            while start < self.size:
                line = file.readline()
                row = json.loads(line)
                count += len(row["figures"])
                if rows and count > figures:
                    break
                rows.append(row)
                start += len(line)
        return rows, start

    def left(self, start: int) -> int:
        """Rows from byte ``start`` on, and those that wait in memory."""
        with self._lock, self._path.open("rb") as file:
            file.seek(start)
            return sum(1 for _ in file) + len(self.waiting)

    @property
    def is_large(self) -> bool:
        """Whether it is time to drop delivered rows."""
        return self.size > self._largest // 2

    def drop(self, delivered: int) -> None:
        """Drop the rows in the first ``delivered`` bytes; the last step of every figure stays known."""
        with self._lock:
            mark = json.dumps({"step": 0, "time": 0, "figures": {}, "last": self._last_step}).encode() + b"\n"
            rest = mark + os.pread(self._descriptor, self.size - delivered, delivered)
            write_atomic(self._path, rest)
            os.close(self._descriptor)
            self._descriptor = os.open(self._path, os.O_RDWR)
            self.size = len(rest)

    def close(self) -> None:
        """Close the file; what waits is tried a last time."""
        self.sync()
        os.close(self._descriptor)


def _row(line: bytes) -> Row | None:
    """The row in ``line``, None if it is not one that was written here."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), int) for key in ("step", "time")):
        return None
    figures, last = row.get("figures"), row.get("last", {})
    whole = isinstance(figures, dict) and all(isinstance(value, (int, float)) for value in figures.values())
    whole &= isinstance(last, dict) and all(isinstance(step, int) for step in last.values())
    return row if whole and isinstance(row.get("rewound", 0), int) else None
