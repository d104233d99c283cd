"""Ends a job in which a rank is silent or nothing moves any more, and says which rank the others waited for.

Every rank counts what it goes on to (:meth:`Watchdog.at`) and, where that is long, how it comes further there
(:meth:`Watchdog.goes_on`). A thread of its own writes a beat to the store of the process group every few seconds: a number, the
counts, and where the rank is. Rank 0, which holds the store, reads all beats. It ends the job

* when nothing new has come from a rank for ``silent_s``: its process is stopped, or its host is lost;
* when all ranks have arrived at one place and stay there much longer than ever before: their collective hangs.

The others read its verdict, and end by themselves when the store does not answer. Besides, the job ends when no rank has come
further for ``stall_s``, and those that are behind are named: however long a phase takes, one that goes on is left alone, also by
the ranks that wait for others. No collective has a time-out that comes before. Each rank ends its process with the status of a
lost rank, wherever its main thread is.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from sleepfm.errors import LostRankError
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.ending import end_silently

_BEAT_SECONDS = 5.0
_STORE_SECONDS = 10.0
# Rank 0 speaks first; the others follow if it does not.
_GRACE_SECONDS = 15.0
# A collective hangs when all have been at one place three times as long as ever before, and three times ``silent_s``.
_HANGS = 3.0
_NAMED = 8
# Where ranks wait for storage, not for one another.
_SLOW = "waiting for data"
_VERDICT = "sleepfm/verdict"
# How far all ranks together have come.
_MOVES = "sleepfm/moves"


@dataclass(frozen=True)
class Beat:
    """What a rank last wrote: its number of the beat, how many places it has been at, and where it is."""

    number: int
    count: int
    moves: int
    """How often it came further, at a place or to the next."""
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


@dataclass(frozen=True)
class _Place:
    """Where a rank is: what it does, how many places and moves came before, since when, and how far it has come there."""

    name: str
    count: int
    moves: int
    since: float
    patient: bool
    how_far: str = ""
    still_until: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.how_far})" if self.how_far else self.name


class Watchdog:
    """Watches this rank, and on rank 0 all of them, from threads until closed.

    Args:
        stall_s: seconds in which no rank comes further, after which the job ends.
        silent_s: seconds without a sign of life from a rank after which the job ends.
        reading: names the shards that are being read.
    """

    def __init__(self, world: World, stall_s: float, silent_s: float, reading: Callable[[], str] = str) -> None:
        self._world, self._stall_s, self.reading = world, stall_s, reading
        self._silent_s = silent_s
        self._interval = min(_BEAT_SECONDS, stall_s / 5, silent_s / 5)
        self._main = threading.get_ident()
        self._place = _Place("starting", 0, 0, time.monotonic(), patient=True)
        self._longest: dict[str, float] = {}
        self._number = 0
        self._heard = time.monotonic()
        # What rank 0 says of all ranks, and when it last said something else.
        self._moves, self._moved = "", self._heard
        self._verdict = ""
        self._stop = threading.Event()
        self._store = _connect() if world.size > 1 else None
        self._news = _News(world.size, self._heard)
        works = [self._watch, self._exchange] if self._store is not None else [self._watch]
        for work in works:
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    def at(self, place: str, patient: bool = False) -> None:
        """This rank goes on to ``place``; ``patient`` where ranks may wait for the work of one. Every rank goes through the same
        places.
        """
        before, now = self._place, time.monotonic()
        self._longest[_kind(before.name)] = max(now - before.since, self._longest.get(_kind(before.name), 0.0))
        self._place = _Place(place, before.count + 1, before.moves + 1, now, patient)

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        """This rank has come further at its place, as ``how_far`` tells. Next it may be still for ``still_s``, which it knows
        from the size of what it does, before ``stall_s`` begins to count. Ranks may differ in how often they say so.
        """
        now = time.monotonic()
        place, still_until = self._place, now + still_s if still_s else 0.0
        how_far = how_far or place.how_far
        self._place = replace(place, moves=place.moves + 1, since=now, how_far=how_far, still_until=still_until)

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def _watch(self) -> None:
        """Asks nobody, so that nothing keeps it from ending this process."""
        while not self._stop.wait(self._interval):
            place, now = self._place, time.monotonic()
            moved = max(place.since, place.still_until, self._moved)
            limit = self._stall_s + (0.0 if self._world.is_main else _GRACE_SECONDS)
            if self._verdict:
                self._end(self._verdict)
            elif self._store is not None and now - self._heard > self._silent_s + (0.0 if self._world.rank == 1 else 2.0):
                self._end(
                    f"no sign of life from rank 0 for {now - self._heard:.0f} s, its process or its host is stopped or lost"
                )
            elif now - moved > limit:
                self._look(now - moved)

    def _exchange(self) -> None:
        """Writes this rank's beats and reads what concerns it; every answer of the store is a sign of life of rank 0."""
        assert self._store is not None
        try:
            while not self._stop.wait(self._interval):
                self._tell()
                if self._world.is_main:
                    self._judge()
                elif self._store.check([_VERDICT]):
                    self._verdict = self._store.get(_VERDICT).decode()
                self._hear()
        except (dist.DistError, RuntimeError):
            # Rank 0 is gone, and with it the store: collectives say so, or else it gives no sign of life any more.
            return

    def _hear(self) -> None:
        """Rank 0 answers; has any rank come further?"""
        assert self._store is not None
        moves = self._store.get(_MOVES).decode() if self._store.check([_MOVES]) else ""
        self._heard = time.monotonic()
        if moves != self._moves:
            self._moves, self._moved = moves, self._heard

    def _judge(self) -> None:
        """On rank 0: is a rank silent, or do all wait in a collective that hangs?"""
        assert self._store is not None
        now = time.monotonic()
        self._news.take(_read(self._store, self._world.size), now)
        self._store.set(_MOVES, str(self._news.moves()))
        verdict = self._news.silent(now, self._silent_s)
        place = self._place
        known = self._longest.get(_kind(place.name))
        if not verdict and known is not None and not place.patient:
            limit = _HANGS * max(known, self._silent_s)
            verdict = self._news.hanging(place.count, now - place.since) if now - place.since > limit else ""
        if verdict and not self._stop.is_set():
            self._store.set(_VERDICT, verdict)
            self._verdict = verdict

    def _tell(self) -> None:
        if self._store is not None:
            self._store.set(_key(self._world.rank), json.dumps(asdict(self._beat())))

    def _beat(self) -> Beat:
        place = self._place
        inside, collective = _inside(sys._current_frames().get(self._main))
        self._number += 1
        # While it may be still it counts as moving, so that the others wait for it.
        moves = place.moves + (self._number if time.monotonic() < place.still_until else 0)
        return Beat(self._number, place.count, moves, socket.gethostname(), str(place), inside, collective, self.reading())

    def _look(self, seconds: float) -> None:
        """This rank has not moved for too long: compare what all ranks wrote, and end."""
        place, moved = self._place, self._moved
        if self._store is None:
            found = f"rank {self._world.rank} is still {self._beat()}"
        else:
            first = self._beats()
            time.sleep(2.5 * self._interval)
            second = self._beats()
            if self._place is not place or self._moved != moved:
                return
            found = missing(first, second)
        self._end(f"stalled, no progress for {seconds:.0f} s (train.stall_s) {place}: {found}")

    def _end(self, verdict: str) -> None:
        if self._stop.is_set():
            return
        # One process a host speaks, and shows where it and its threads are.
        if self._world.local_rank == 0 or self._world.rank == 1:
            said = f"error (rank {self._world.rank}): {verdict}. The job ends; the same command continues from the last save"
            print(said, file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr)
        if self._verdict:
            # All read it, and rank 0, with the store, is the first to end.
            time.sleep((2 if self._world.is_main else 4) * self._interval)
        end_silently(LostRankError.exit_status)

    def _beats(self) -> list[Beat | None] | None:
        """What every rank last wrote; None where the store does not answer, that is, rank 0."""
        found: list[Beat | None] = []

        def ask() -> None:
            found.extend(_read(_connect(), self._world.size))

        # In a thread: a host that has vanished never answers.
        asking = threading.Thread(target=_quietly, args=(ask,), daemon=True)
        asking.start()
        asking.join(_STORE_SECONDS)
        return found if len(found) == self._world.size else None


class _News:
    """What rank 0 knows of all ranks: their last beats, and since when nothing new has come."""

    def __init__(self, size: int, now: float) -> None:
        self._beats: list[Beat | None] = [None] * size
        self._since = [now] * size

    def take(self, beats: Sequence[Beat | None], now: float) -> None:
        for rank, beat in enumerate(beats):
            if beat != self._beats[rank]:
                self._beats[rank], self._since[rank] = beat, now

    def moves(self) -> int:
        """How often they have come further, all together."""
        return sum(beat.moves for beat in self._beats if beat is not None)

    def silent(self, now: float, silent_s: float) -> str:
        """The ranks without a sign of life, in words; empty if there are none."""
        lost = {rank: self._beats[rank] for rank, since in enumerate(self._since) if now - since > silent_s}
        longest = max(now - since for since in self._since)
        return f"no sign of life from {_named(lost)} for {longest:.0f} s (train.silent_s)" if lost else ""

    def hanging(self, count: int, seconds: float) -> str:
        """That all have arrived where rank 0 is and wait for one another, in words; empty if a rank is elsewhere."""
        beats = {rank: beat for rank, beat in enumerate(self._beats) if beat is not None and beat.count == count}
        if len(beats) < len(self._beats) or any(beat.place.startswith(_SLOW) for beat in beats.values()):
            return ""
        return f"stalled, a collective hangs: all ranks have been at the same place for {seconds:.0f} s; {_named(beats)}"


def missing(first: Sequence[Beat | None] | None, second: Sequence[Beat | None] | None) -> str:
    """Which ranks the others wait for, from what all of them wrote at two times more than a beat apart."""
    if first is None or second is None:
        return "rank 0 does not answer, its process or its host is stopped or lost"
    silent = {rank: new for rank, (old, new) in enumerate(zip(first, second, strict=True)) if new is None or old == new}
    if silent:
        return f"no sign of life from {_named(silent)}"
    beats = {rank: beat for rank, beat in enumerate(second) if beat is not None}
    arrived = max(beat.count for beat in beats.values())
    behind = {rank: beat for rank, beat in beats.items() if beat.count < arrived}
    if not behind:
        behind = {rank: beat for rank, beat in beats.items() if not beat.collective}
    if not behind or len(behind) == len(beats):
        return f"all ranks are at the same place; {_named(beats)}"
    return f"the others wait for {_named(behind)}"


def _named(ranks: dict[int, Any]) -> str:
    listed = [f"rank {rank} ({beat or 'which has never reported'})" for rank, beat in sorted(ranks.items())[:_NAMED]]
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


def _kind(place: str) -> str:
    """A place without the number of its step."""
    return re.sub(r"\d+", "", place)


def _read(store: dist.TCPStore, size: int) -> list[Beat | None]:
    keys = [_key(rank) for rank in range(size)]
    if store.check(keys):
        # In one question, of which there may be a thousand.
        return [Beat(**json.loads(value)) for value in store.multi_get(keys)]
    return [Beat(**json.loads(store.get(key))) if store.check([key]) else None for key in keys]


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
