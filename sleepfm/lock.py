"""One process at a time: the second writer of a folder is refused by the name of the first, or waits for its turn."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sleepfm.errors import BusyError, StorageError
from sleepfm.files import make_folder, writing

LOCK_FILE = ".lock"
_POLL_SECONDS = 0.1
_WAIT_SECONDS = 1.0


@contextmanager
def only_writer(folder: Path, patience_seconds: float = 0.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep every other process out of ``folder``, which is made if need be, until the block ends.

    A process that is writing there is waited for up to ``patience_seconds``; ``waiting`` is then called every second with what is
    waited for.

    ``folder/.lock`` is locked with ``flock`` and names host and process. The system gives the lock back when the process dies,
    however it dies, so that what a killed job left can be taken up at once. Jobs of several hosts exclude each other where their
    file system passes ``flock`` on, as NFS, Lustre (mounted with ``flock``) and GPFS do.

    Raises:
        BusyError: another process writes there.
        StorageError: the folder or the lock cannot be written, or a file of that name is somebody else's.
    """
    make_folder(folder)
    path = folder / LOCK_FILE
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        deadline = time.monotonic() + patience_seconds
        try:
            while not _taken(handle):
                said = f"{folder}: {_holder(handle) or 'another process'} is writing here"
                if time.monotonic() >= deadline:
                    raise BusyError(f"{said}; wait for it, stop it, or give another folder")
                if waiting is not None:
                    waiting(said)
                time.sleep(min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic())))
        except OSError as error:
            raise StorageError(f"{path}: its file system does not support locks ({error.strerror}); use another one") from error
        if os.fstat(handle).st_size and _holder(handle) is None:
            raise StorageError(f"{path}: is not a lock file of this program; move it away, or give another folder")
        own = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().astimezone().isoformat(" ", "seconds")}
        with writing(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(own).encode(), 0)
            # Other hosts must see it.
            os.fsync(handle)
        try:
            yield
        finally:
            # What is made from the same input is the same, the lock included.
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, patience_seconds: float) -> Iterator[None]:
    """Hold the file ``path``, made if need be, locked against every other process, after waiting for it if need be.

    Raises:
        BusyError: another process held it for ``patience_seconds``.
        OSError: it cannot be made, or its file system knows no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + patience_seconds
    try:
        while not _taken(handle):
            if time.monotonic() > deadline:
                raise BusyError(f"{path}: another process has held this lock for {patience_seconds:.0f} s; stop it")
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    """Whether the lock is this process's now, without waiting for it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> str | None:
    """Who wrote the lock file, in words; None where that is nobody or not this program."""
    try:
        known = json.loads(os.pread(handle, 4096, 0))
        return f"process {known['pid']} on host {known['host']} (since {known['since']})"
    except (ValueError, KeyError, TypeError):
        return None
