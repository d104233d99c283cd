"""How the processes of a job find one another: at a store that rank 0 holds, at ``MASTER_ADDR`` and ``MASTER_PORT``.

Much of this waits inside of C++ or of the system's resolver, where Python hears no signal that asks the process to leave. So a
thread does it, and the main thread waits for the thread.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from sleepfm.console import SaidOnce
from sleepfm.errors import ConfigError, LostRankError, TrainingError

if TYPE_CHECKING:
    from sleepfm.training.ranks.distributed import World

T = TypeVar("T")

# Processes import at different speeds, from a slow file system the slower.
_JOIN_SECONDS = 600.0
# A job that was asked to leave holds its port until it has saved.
PREDECESSOR_SECONDS = 60.0
# A name server may not know a host yet that has just been made.
_NAME_SECONDS = 30.0
# Who waits longer than this says for what.
_QUIET_SECONDS = 15.0
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
# Rank 0 reaches its own store at once, if its address is its own.
_OWN_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_NAMED_RANKS = 8
_ALL = "sleepfm/all"


def join(world: World) -> dist.TCPStore:
    """The store of this job, once all of its processes are there.

    A job before this one that is still saving may hold the port: rank 0 has waited for it (:func:`wait_for_port`), and the
    others, which would meet the store of that job, find the place of their rank taken there, and look again.

    Raises:
        ConfigError: ``MASTER_PORT`` is no number.
        TrainingError: the name of rank 0's host leads nowhere, or another job has the port.
        LostRankError: ranks that did not come.
    """
    return _begin(lambda: _join(world)).result()


def _join(world: World) -> dist.TCPStore:
    address, stated = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not stated.isdigit():
        raise ConfigError(
            f"environment variables MASTER_ADDR={address!r} and MASTER_PORT={stated!r}: expected rank 0's host and a number, as "
            "launchers set them"
        )
    port = int(stated)
    addresses = _resolve(world, address, port)
    deadline = time.monotonic() + _JOIN_SECONDS
    if world.is_main:
        store = _hold(world, address, port)
        store.set("sleepfm/size", str(world.size))
        store.set(_place(0), "here")
        _wait_for_ranks(world, store, deadline)
    else:
        store = _meet(world, address, port, addresses, deadline)
        _wait_for_main(world, store, deadline)
    store.set_timeout(timedelta(seconds=_JOIN_SECONDS))
    return store


def wait_for_port(port: int, patience_seconds: float) -> str:
    """Until nothing listens on ``port`` of this host; '' then, else, after ``patience_seconds``, what the system says."""
    deadline, waits = time.monotonic() + patience_seconds, SaidOnce()
    while True:
        with socket.socket() as probe:
            # As the store does: connections that have just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                return ""
            except OSError as error:
                reason = error.strerror or str(error)
        if time.monotonic() >= deadline:
            return reason
        waits.say(
            f"port {port}, where rank 0 listens: {reason}; waiting up to {patience_seconds:.0f} s for a job that is still saving"
        )
        time.sleep(_LOOK_SECONDS)


def cannot_join(world: World, reason: str) -> TrainingError:
    """What a process says that does not find the others."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return TrainingError(
        f"rank {world.rank} cannot join the others at {address} ({reason}); if another job uses the port, give the launcher "
        "another --master_port"
    )


def _resolve(world: World, address: str, port: int) -> list[Any]:
    """Where ``address`` leads."""
    deadline, waits = time.monotonic() + _NAME_SECONDS, SaidOnce()
    while True:
        try:
            return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        said = f"environment variable MASTER_ADDR={address}: no host has this name ({reason})"
        if time.monotonic() >= deadline:
            raise TrainingError(f"{said}; give the name or address by which this host can reach the host of rank 0")
        if world.local_rank == 0:
            waits.say(f"{said}; trying for {_NAME_SECONDS:.0f} s")
        time.sleep(1.0)


def _hold(world: World, address: str, port: int) -> dist.TCPStore:
    """On rank 0: the store, reached as the others reach it."""
    timeout = timedelta(seconds=_ANSWER_SECONDS)
    attempt = _begin(lambda: dist.TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=timeout))
    if not wait([attempt], timeout=_OWN_SECONDS).done:
        raise cannot_join(world, "another program listens where MASTER_ADDR leads on this host")
    return attempt.result()


def _meet(world: World, address: str, port: int, addresses: list[Any], deadline: float) -> dist.TCPStore:
    """The store, with the place of this rank taken in it."""
    own, began, waits = uuid.uuid4().hex, time.monotonic(), SaidOnce()
    attempt: Future[dist.TCPStore | None] | None = None
    while True:
        other = False
        reason = _unanswered(addresses)
        if attempt is None and not reason:
            attempt = _begin(lambda: _take_place(world, address, port, own))
        if attempt is not None and wait([attempt], timeout=_ANSWER_SECONDS).done:
            try:
                store = attempt.result()
                if store is not None:
                    return store
                other, reason = True, "another job answers there, which has all its ranks"
            except dist.DistError as error:
                # No store, or that of a job that ended meanwhile.
                reason = reason or str(error).splitlines()[0]
            attempt = None
        # A store that is asked has no time-out of its own for what listens and says nothing.
        reason = reason or "the program that listens there is no training job"
        if time.monotonic() > deadline:
            raise cannot_join(world, reason) if other else LostRankError(str(cannot_join(world, reason)))
        if world.local_rank == 0 and time.monotonic() - began > _QUIET_SECONDS:
            waits.say(f"rank {world.rank} waits for rank 0 at {address}:{port}, up to {_JOIN_SECONDS:.0f} s ({reason})")
        time.sleep(_LOOK_SECONDS)


def _take_place(world: World, address: str, port: int, own: str) -> dist.TCPStore | None:
    """The store, if it is one of as many processes and has this rank's place free; that is then marked with ``own``."""
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_ANSWER_SECONDS))
    same = int(store.get("sleepfm/size")) == world.size
    return store if same and store.compare_set(_place(world.rank), "", own).decode() == own else None


def _wait_for_ranks(world: World, store: dist.TCPStore, deadline: float) -> None:
    """On rank 0: until all are there."""
    began, waits, left = time.monotonic(), SaidOnce(), list(range(1, world.size))
    while left := [rank for rank in left if not store.check([_place(rank)])]:
        named = ", ".join(map(str, left[:_NAMED_RANKS])) + (" …" if len(left) > _NAMED_RANKS else "")
        if time.monotonic() > deadline:
            raise LostRankError(
                f"{len(left)} of {world.size} ranks did not connect within {_JOIN_SECONDS:.0f} s: {named}; see the output of "
                "their hosts"
            )
        if time.monotonic() - began > _QUIET_SECONDS:
            waits.say(f"rank 0 waits for rank {named}, up to {_JOIN_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)
    store.set(_ALL, "here")


def _wait_for_main(world: World, store: dist.TCPStore, deadline: float) -> None:
    """On the others: until rank 0 says that all are there; it names those that are not."""
    while not store.check([_ALL]):
        if time.monotonic() > deadline + _QUIET_SECONDS:
            raise LostRankError(f"rank {world.rank}: rank 0 still waits for other ranks after {_JOIN_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _unanswered(addresses: list[Any]) -> str:
    """'' if something listens at one of ``addresses``, else why not."""
    reason = "no address"
    for family, kind, protocol, _, target in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(_CONNECT_SECONDS)
                probe.connect(target)
                return ""
        except OSError as error:
            reason = error.strerror or str(error)
    return reason


def _begin(work: Callable[[], T]) -> Future[T]:
    """``work`` in a thread that ends with the process, whatever it is in."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="joining", daemon=True).start()
    return future


def _place(rank: int) -> str:
    return f"sleepfm/rank/{rank}"
