"""Ends a job in which nothing moves any more, and says which rank the others waited for.

Every rank counts what it goes on to (:meth:`Watchdog.at`); a thread of its own writes the count, and where the rank is, to the
store of the process group every few seconds. A rank that has not moved for too long reads what the others wrote: ranks of which
nothing is heard, else ranks whose count is behind, else ranks that are in no collective, are those that did not arrive. It says
so and ends its process, upon which the launcher ends the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from sleepfm.training.ranks.distributed import World

_BEAT_SECONDS = 5.0
_STORE_SECONDS = 10.0
# Rank 0 speaks first; the others follow if it does not.
_GRACE_SECONDS = 15.0
_NAMED = 8
STALLED_STATUS = 1


@dataclass(frozen=True)
class Beat:
    """What a rank last wrote: its number of the beat, how many places it has been at, and where it is."""

    number: int
    count: int
    host: str
    place: str
    inside: str
    """Innermost line of the rank's main thread."""
    collective: bool
    """Whether that is inside of torch.distributed, that is, waits for others."""
    reading: str
    """Shards that are being read."""

    def __str__(self) -> str:
        reading = f"; being read: {self.reading}" if self.reading else ""
        return f"on {self.host}, {self.place}, in {self.inside}{reading}"


class Watchdog:
    """Watches this rank from a thread until closed.

    Args:
        stall_s: seconds without progress after which the job ends.
        patience_s: the same at places that may take long.
        reading: names the shards that are being read.
    """

    def __init__(self, world: World, stall_s: float, patience_s: float, reading: Callable[[], str] = str) -> None:
        self._world, self._stall_s, self._patience_s, self.reading = world, stall_s, max(stall_s, patience_s), reading
        self._interval = min(_BEAT_SECONDS, stall_s / 5)
        self._main = threading.get_ident()
        self._place = ("starting", 0, time.monotonic(), True)
        self._number = 0
        self._stop = threading.Event()
        self._store = _connect() if world.size > 1 else None
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, place: str, patient: bool = False) -> None:
        """This rank goes on to ``place``, where it may stay longer if ``patient``. Every rank goes through the same places."""
        self._place = (place, self._place[1] + 1, time.monotonic(), patient)

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def _work(self) -> None:
        while not self._stop.wait(self._interval):
            _, _, since, patient = self._place
            limit = self._patience_s if patient else self._stall_s
            limit += 0.0 if self._world.is_main else _GRACE_SECONDS
            self._tell()
            if time.monotonic() - since > limit:
                self._end(time.monotonic() - since)

    def _tell(self) -> None:
        if self._store is None:
            return
        try:
            self._store.set(_key(self._world.rank), json.dumps(asdict(self._beat())))
        except (dist.DistError, RuntimeError):
            # Rank 0 is gone, and with it the store; the next collective says so.
            self._store = None

    def _beat(self) -> Beat:
        place, count, _, _ = self._place
        inside, collective = _inside(sys._current_frames().get(self._main))
        self._number += 1
        return Beat(self._number, count, socket.gethostname(), place, inside, collective, self.reading())

    def _end(self, seconds: float) -> None:
        place, count, _, _ = self._place
        if self._store is None:
            found = f"rank {self._world.rank} is still {self._beat()}"
        else:
            first = self._beats()
            time.sleep(2.5 * self._interval)
            self._tell()
            second = self._beats()
            if self._place[1] != count or self._stop.is_set():
                return
            found = missing(first, second)
        print(
            f"error (rank {self._world.rank}): stalled, no progress for {seconds:.0f} s (train.stall_s) {place}: {found}. "
            "The job ends; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STALLED_STATUS)

    def _beats(self) -> list[Beat | None] | None:
        """What every rank last wrote; None where the store does not answer, that is, rank 0."""
        found: list[Beat | None] = []

        def ask() -> None:
            store = _connect()
            for rank in range(self._world.size):
                key = _key(rank)
                found.append(Beat(**json.loads(store.get(key))) if store.check([key]) else None)

        # In a thread: a host that has vanished never answers.
        asking = threading.Thread(target=_quietly, args=(ask,), daemon=True)
        asking.start()
        asking.join(_STORE_SECONDS)
        return found if len(found) == self._world.size else None


def missing(first: Sequence[Beat | None] | None, second: Sequence[Beat | None] | None) -> str:
    """Which ranks the others wait for, from what all of them wrote at two times more than a beat apart."""
    if first is None or second is None:
        return "rank 0 does not answer, its process or its host is stopped or lost"
    silent = {rank: new for rank, (old, new) in enumerate(zip(first, second, strict=True)) if new is None or old == new}
    if silent:
        return f"nothing is heard of {_named(silent)}"
    beats = {rank: beat for rank, beat in enumerate(second) if beat is not None}
    arrived = max(beat.count for beat in beats.values())
    behind = {rank: beat for rank, beat in beats.items() if beat.count < arrived}
    if not behind:
        behind = {rank: beat for rank, beat in beats.items() if not beat.collective}
    if not behind or len(behind) == len(beats):
        return f"all ranks have arrived; {_named(beats)}"
    return f"the others wait for {_named(behind)}"


def _named(ranks: dict[int, Any]) -> str:
    listed = [f"rank {rank} ({beat or 'which never wrote'})" for rank, beat in sorted(ranks.items())[:_NAMED]]
    more = [f"{len(ranks) - _NAMED} more"] if len(ranks) > _NAMED else []
    return ", ".join(listed + more)


def _inside(frame: FrameType | None) -> tuple[str, bool]:
    """Innermost line of ``frame``'s stack, and whether that is in torch.distributed."""
    if frame is None:
        return "no Python code", False
    path = Path(frame.f_code.co_filename)
    line, collective = f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}", False
    folder = str(Path(dist.__file__).parent)
    above: FrameType | None = frame
    while above is not None and not collective:
        collective = above.f_code.co_filename.startswith(folder)
        above = above.f_back
    return line, collective


def _key(rank: int) -> str:
    return f"sleepfm/beat/{rank}"


def _connect() -> dist.TCPStore:
    """A connection of our own to the store of the process group, which a collective cannot keep busy."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=_STORE_SECONDS)
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=wait)


def _quietly(work: Callable[[], None]) -> None:
    """Run ``work``; that it was not done is seen by what is not there."""
    try:
        work()
    except (dist.DistError, RuntimeError, OSError):
        return
