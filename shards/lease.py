"""One builder at a time, into a folder or a URL, and how its tasks know that it still is the one.

In a folder a lock of the system tells (:mod:`sleepfm.lock`). Behind a URL nothing gives a lock back when a process dies, so the
builder has a lease that runs out unless it is renewed. Below ``OUT/.lease`` stand numbered objects, each put under the condition
that its name is free: whoever has put the highest number builds. A builder renews its lease by the next number. Another one that
sees a number stand still for as long as its lease says takes the next number itself. Clocks of machines are never compared: each
measures how long it has seen a number, or how long ago its own was put.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from shards.store import Store, refusal
from sleepfm.errors import BusyError, ConfigError, DatasetError, StorageError
from sleepfm.lock import LOCK_FILE, only_writer
from sleepfm.signals.files import is_remote

log = logging.getLogger(__name__)

LEASE_FOLDER = ".lease"
_RENEWALS = 4  # in the time of a lease
_TRUSTED = 0.75  # of its time a lease is taken for held without asking the store
_POLLS = 20  # looks of a waiting builder in the time of a lease
_DIGITS = 8

# Raises :class:`BusyError` once another one builds.
Check = Callable[[], None]


@dataclass(frozen=True)
class Builder:
    """The builder of ``out``, for its tasks on any host: ``token`` is what stands in the lock."""

    out: Path
    token: str

    def check(self, seen: int = 0) -> int:
        """Pass where this builder is the one that builds into ``out``, as seen from this host.

        Args:
            seen: a number of this builder's lease that an earlier check has given: while it is the highest it is not read again.

        Raises:
            BusyError: another one is now.
            StorageError: a folder that is not the one the builder writes into, or a store that cannot be asked.
        """
        if is_remote(self.out):
            store = Store(self.out)
            if seen and _numbers(store)[-1:] == [seen]:
                return seen
            if (found := _highest(store)) is None or found[1]["token"] != self.token:
                raise BusyError(_lost(self.out, found and found[1]))
            return found[0]
        try:
            stands = (self.out / LOCK_FILE).read_text(encoding="utf-8")
        except OSError as error:
            stands = f"({error.strerror})"
        if stands != self.token:
            raise StorageError(
                f"{self.out}: on host {socket.gethostname()} this is not the folder that the build writes into; give a URL "
                "(s3://...) or a folder that all nodes share"
            )
        return 0

    def checks(self) -> Check:
        """:meth:`check`, to be called again and again."""
        seen = 0

        def check() -> None:
            nonlocal seen
            seen = self.check(seen)

        return check


class Lease:
    """A lease that a thread renews until :meth:`release`."""

    def __init__(self, store: Store, number: int, record: dict[str, Any], began: float) -> None:
        self.builder = Builder(store.url, record["token"])
        self._store, self._number, self._record = store, number, record
        self._renewed = began
        self._lost = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`BusyError` where the lease is lost, or may be since it could not be renewed in time."""
        if not self._lost and _now() - self._renewed > _TRUSTED * self._record["lease_s"]:
            # A process that was stopped for a while, or a store that does not answer.
            self.builder.check()
            self._lost = f"{self._store.url}: the lease of this build could not be renewed in time; run the same command again"
        if self._lost:
            raise BusyError(self._lost)

    def release(self) -> None:
        """End the renewals and give the lease back, if it is still held."""
        self._end.set()
        self._thread.join()
        try:
            if not self._lost:
                self._put(released=True)
        except (StorageError, DatasetError) as error:
            log.warning("%s; the next build waits for %g s", error, self._record["lease_s"])

    def _renew(self) -> None:
        every, took = self._record["lease_s"] / _RENEWALS, 0.0
        # From begin to begin: a store that answers slowly must not make renewals rarer.
        while not self._end.wait(max(0.0, every - took)):
            began = _now()
            try:
                self._put()
            except (StorageError, DatasetError) as error:
                # Tried again at the next turn; :meth:`check` says when it was too late.
                log.warning("%s", error)
            if self._lost:
                return
            took = _now() - began

    def _put(self, **more: Any) -> None:
        began = _now()
        record = {**self._record, **more}
        while not self._store.create(_name(self._number + 1), json.dumps(record).encode()):
            found = _highest(self._store)
            if found is None or found[1]["token"] != record["token"]:
                self._lost = _lost(self._store.url, found and found[1])
                return
            # Its own, of which the answer was lost.
            self._number = max(self._number, found[0])
        self._number += 1
        self._renewed = began
        for number in _numbers(self._store):
            # The one before may be being read.
            if number < self._number - 1 or (number < self._number and record["released"]):
                self._store.remove(_name(number))


@contextmanager
def only_builder(out: Path, lease_s: float, say: Callable[[str], object]) -> Iterator[tuple[Builder, Check]]:
    """Keep every other builder out of ``out`` until the block ends.

    Gives what tasks need to know of this builder, and what the driver calls before it writes: it raises :class:`BusyError` once
    another one builds.

    Args:
        lease_s: seconds after which the lease of a builder that has died runs out, behind a URL.
        say: is told what is waited for.

    Raises:
        BusyError: another process builds there.
        ConfigError: the store puts nothing under a condition.
        StorageError: the lock cannot be written, or is somebody else's.
    """
    if not is_remote(out):
        with only_writer(out):
            yield Builder(out, (out / LOCK_FILE).read_text(encoding="utf-8")), lambda: None
        return
    lease = _acquire(Store(out), lease_s, say)
    try:
        yield lease.builder, lease.check
    finally:
        lease.release()


def _acquire(store: Store, lease_s: float, say: Callable[[str], object]) -> Lease:
    store.require_conditional()
    # What has no such object says whether it lets others be removed, which a lease leaves behind at each renewal.
    store.remove(_name(0))
    record = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "lease_s": lease_s,
        "released": False,
    }
    waited_for: list[int] = []
    since = 0.0
    while True:
        found = _highest(store)
        number, holder = found or (0, None)
        # A record of its own is one whose answer was lost.
        if holder is not None and not holder["released"] and holder["token"] != record["token"]:
            if number not in waited_for:
                # One number may still have been on its way when its builder died.
                if len(waited_for) == 2:
                    raise BusyError(
                        f"{store.url}: {_told(holder)} is building here; wait for it, stop it, or give another address"
                    )
                if not waited_for:
                    wait = f"continuing when its lease runs out, in {holder['lease_s']:g} s"
                    say(f"{store.url}: {_told(holder)} has been building here; {wait}")
                waited_for.append(number)
                since = _now()
            if _now() - since <= holder["lease_s"]:
                time.sleep(holder["lease_s"] / _POLLS)
                continue
        began = _now()
        created = store.create(_name(number + 1), json.dumps(record).encode())
        # Somebody else may have put it, and gone on to higher numbers and removed it since this one looked.
        if created and (now := _highest(store)) is not None and now[1]["token"] == record["token"]:
            if store.create(_name(number + 1), b"a store that knows conditions does not take this"):
                store.remove(_name(number + 1))
                raise ConfigError(refusal(store.url))
            return Lease(store, number + 1, record, began)


def _highest(store: Store) -> tuple[int, dict[str, Any]] | None:
    """The highest number and what stands there, or None where nobody has ever built.

    Raises:
        StorageError: something else stands there.
    """
    while numbers := _numbers(store):
        try:
            record = json.loads(store.read(_name(numbers[-1])))
            if {"token", "host", "pid", "since", "lease_s", "released"} <= record.keys():
                return numbers[-1], record
        except FileNotFoundError:
            continue  # its builder has gone on to the next number
        except (ValueError, AttributeError):
            pass
        raise StorageError(
            f"{store.url / _name(numbers[-1])}: is not a lease of this program; move it away, or give another address"
        )
    return None


def _numbers(store: Store) -> list[int]:
    names = [name.removeprefix(f"{LEASE_FOLDER}/") for name in store.objects(LEASE_FOLDER)]
    return sorted(int(name) for name in names if len(name) == _DIGITS and name.isdecimal())


def _name(number: int) -> str:
    return f"{LEASE_FOLDER}/{number:0{_DIGITS}d}"


def _told(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on host {record['host']} (since {record['since']})"


def _lost(url: Path, holder: dict[str, Any] | None) -> str:
    other = _told(holder) if holder else "nobody"
    return f"{url}: this build has lost its lease, {other} is building here now; what is finished is kept"


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
