"""What went wrong, or slowly, while a stream was read: counted, and by name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

log = logging.getLogger(__name__)

SLOW_SECONDS = 5.0


@dataclass
class Trouble:
    """What one shard has done: faults met, the last in words; reads that were slow, the slowest in seconds and in words."""

    faults: int = 0
    last_fault: str = ""
    slow_reads: int = 0
    slowest: float = 0.0
    slowest_read: str = ""


class Counts(NamedTuple):
    """What a report held: its items, those skipped, the shards in trouble, and what was wrong last."""

    items: int
    skipped: int
    shards: dict[str, Trouble]
    last_fault: str


@dataclass
class ReadReport:
    """Figures of one stream, filled by the threads that read and with what other processes read, taken by whoever logs.

    ``items`` were given, and on the way to them ``skipped`` corrupt ones were left out; ``last_fault`` is the last reason.
    ``shards`` holds those in trouble, by name, and so does not grow with the data set but with what is wrong with it. The
    first trouble of a kind in a shard is logged at once, as a warning, unless ``silent``; further ones are counted.
    ``elsewhere`` names what other processes are reading.
    """

    slow_seconds: float = SLOW_SECONDS
    items: int = 0
    skipped: int = 0
    shards: dict[str, Trouble] = field(default_factory=dict)
    last_fault: str = ""
    silent: bool = False
    elsewhere: Callable[[], str] = str
    _reading: dict[int, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[object, ...]:
        """A copy in another process counts what is read there."""
        return ReadReport, (self.slow_seconds,)

    def fault(self, shard: str, reason: str) -> None:
        """Something of ``shard`` is not what was written; ``reason`` names it."""
        self._note(shard, Trouble(faults=1, last_fault=reason))

    @contextmanager
    def timed(self, shard: str, what: str = "read") -> Iterator[None]:
        """Around an access to ``shard``; reports it if it takes longer than ``slow_seconds``."""
        thread, began = threading.get_ident(), time.perf_counter()
        around = self._reading.get(thread)
        self._reading[thread] = (shard, began)
        try:
            yield
        finally:
            del self._reading[thread]
            if around is not None:
                self._reading[thread] = around
            self.took(shard, time.perf_counter() - began, what)

    def took(self, shard: str, seconds: float, what: str = "read") -> None:
        """An access to ``shard`` took ``seconds``."""
        if seconds > self.slow_seconds:
            self._note(shard, Trouble(slow_reads=1, slowest=seconds, slowest_read=f"a {what} of {shard} took {seconds:.1f} s"))

    def _note(self, shard: str, new: Trouble) -> None:
        with self._lock:
            known = self.shards.setdefault(shard, Trouble())
            first_fault = new.faults and not known.faults
            first_slow = new.slow_reads and not known.slow_reads
            known.faults += new.faults
            known.last_fault = new.last_fault or known.last_fault
            known.slow_reads += new.slow_reads
            if new.slowest > known.slowest:
                known.slowest, known.slowest_read = new.slowest, new.slowest_read
            self.last_fault = new.last_fault or self.last_fault
        if first_fault and not self.silent:
            log.warning("corrupt: %s", new.last_fault)
        if first_slow and not self.silent:
            log.warning("slow: %s (more than %g s is reported)", new.slowest_read, self.slow_seconds)

    def take(self) -> Counts:
        """What was counted since the last call, which another report can add."""
        with self._lock:
            taken = Counts(self.items, self.skipped, self.shards, self.last_fault)
            self.items, self.skipped, self.shards = 0, 0, {}
        return taken

    def add(self, counts: Counts) -> None:
        """Count what another process has read, and log what it met first."""
        self.items += counts.items
        self.skipped += counts.skipped
        for shard, trouble in counts.shards.items():
            self._note(shard, trouble)
        self.last_fault = counts.last_fault or self.last_fault

    def reading(self) -> str:
        """The accesses under way, such as ``shard-000003.tar for 12.5 s``; empty where there is none."""
        now = time.perf_counter()
        own = [f"{shard} for {now - began:.1f} s" for shard, began in list(self._reading.values())]
        return ", ".join([*own, *filter(None, [self.elsewhere()])])

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
