"""Peak memory of a process and everything it started, shared pages counted once."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


def tree_pss(pid: int) -> int:
    """Proportional set size in bytes of process ``pid`` and its descendants (Linux; 0 for what has ended)."""
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_pss(process.pid) for process in processes)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended since it was listed
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class PeakMemory:
    """Samples :func:`tree_pss` in a thread while the ``with`` block runs; ``peak`` is the largest sum seen."""

    def __init__(self, pid: int, interval: float = 2.0) -> None:
        self.peak = 0
        self._pid, self._interval = pid, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, tree_pss(self._pid))
            self._stop.wait(self._interval)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
