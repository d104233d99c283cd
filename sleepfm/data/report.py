"""What went wrong, or slowly, while a stream was read: counted, and by name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

SLOW_SECONDS = 5.0


@dataclass
class Trouble:
    """What one shard has done: faults met, the last of them in words, reads that were slow, the slowest in seconds."""

    faults: int = 0
    last_fault: str = ""
    slow_reads: int = 0
    slowest: float = 0.0


@dataclass
class ReadReport:
    """Figures of one stream on one process, filled by the threads that read, taken by whoever logs.

    ``items`` were given, and on the way to them ``skipped`` corrupt ones were left out. ``shards`` holds those in
    trouble, by name, and so does not grow with the data set but with what is wrong with it. The first
    trouble of a kind in a shard is logged at once, as a warning; further ones are counted.
    """

    slow_seconds: float = SLOW_SECONDS
    items: int = 0
    skipped: int = 0
    shards: dict[str, Trouble] = field(default_factory=dict)
    _reading: dict[int, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, shard: str, reason: str) -> None:
        """Something of ``shard`` is not what was written; ``reason`` names it."""
        with self._lock:
            trouble = self.shards.setdefault(shard, Trouble())
            trouble.faults += 1
            trouble.last_fault = reason
            first = trouble.faults == 1
        if first:
            log.warning("corrupt: %s", reason)

    @contextmanager
    def timed(self, shard: str, what: str = "read") -> Iterator[None]:
        """Around an access to ``shard``; reports it if it takes longer than ``slow_seconds``."""
        thread, began = threading.get_ident(), time.perf_counter()
        self._reading[thread] = (shard, began)
        try:
            yield
        finally:
            del self._reading[thread]
            self.took(shard, time.perf_counter() - began, what)

    def took(self, shard: str, seconds: float, what: str = "read") -> None:
        """An access to ``shard`` took ``seconds``."""
        if seconds <= self.slow_seconds:
            return
        with self._lock:
            trouble = self.shards.setdefault(shard, Trouble())
            trouble.slow_reads += 1
            trouble.slowest = max(trouble.slowest, seconds)
            first = trouble.slow_reads == 1
        if first:
            log.warning("slow: a %s of %s took %.1f s (more than %g s is reported)", what, shard, seconds, self.slow_seconds)

    def reading(self) -> str:
        """The accesses under way, such as ``shard-000003.tar for 12.5 s``; empty where there is none."""
        now = time.perf_counter()
        return ", ".join(f"{shard} for {now - began:.1f} s" for shard, began in list(self._reading.values()))

    def figures(self) -> dict[str, float]:
        """For tracking: items left out as corrupt, slow reads, and the slowest in seconds."""
        with self._lock:
            troubles = list(self.shards.values())
        return {
            "data/skipped": float(self.skipped),
            "data/faults": float(sum(trouble.faults for trouble in troubles)),
            "data/slow_reads": float(sum(trouble.slow_reads for trouble in troubles)),
            "data/slowest_read": max((trouble.slowest for trouble in troubles), default=0.0),
        }

    def lines(self) -> list[str]:
        """One line for each shard in trouble."""
        with self._lock:
            found = sorted(self.shards.items())
        return [
            "; ".join(
                ([f"{trouble.faults} corrupt pieces, last: {trouble.last_fault}"] if trouble.faults else [])
                + ([f"{shard}: {trouble.slow_reads} slow reads, up to {trouble.slowest:.1f} s"] if trouble.slow_reads else [])
            )
            for shard, trouble in found
        ]


def report_of(source: object) -> ReadReport | None:
    """The report of a source of batches, where it keeps one."""
    report = getattr(source, "report", None)
    return report if isinstance(report, ReadReport) else None
