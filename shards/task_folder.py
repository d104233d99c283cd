"""The folder in which a task makes a shard, and how tar and then sidecar come from it into a store.

A store takes a while to put the parts of a tar together: a second for some hundred megabytes, in which its worker would wait. So
a task that has sent all parts may hand over what is left, three requests, and its worker converts the next shard meanwhile. It
keeps nothing of the shard then: whoever it is handed to needs no byte of the tar, and the worker and its node may go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.early_upload import EarlyUpload, put_together
from shards.lease import Builder, Check
from shards.store import Store, Upload
from shards.working_copy import scratch
from sleepfm.data.format import SHARD_FOLDER
from sleepfm.errors import ShardError
from sleepfm.files import make_folder
from sleepfm.signals.files import is_remote

_TRIES = 3


@dataclass(frozen=True)
class Arrived:
    """A shard all parts of whose ``tar`` are in the store, and what makes it complete; any process can call :func:`complete`."""

    tar: str
    size: int
    sha256: str
    upload: Upload
    sidecar: bytes


@contextmanager
def task_folder(
    out: Path, shard: str, builder: Builder | None, hand_over: Callable[[Arrived], object] | None = None
) -> Iterator[Path]:
    """The folder in which a task makes ``shard``: that of the data set, or of a URL a folder on the worker's disk, from which tar
    and then sidecar are put into the store at the end.

    Args:
        builder: whose task this is; it must be the one that builds, when the task begins and before anything is put.
        hand_over: is given what is left to do once all parts of the tar are in the store, where it went in parts and nothing was
            there before; the caller sees to it that :func:`complete` does it.

    Raises:
        BusyError: another one builds.
        StorageError: this host does not see the output folder, or the store cannot be written to.
    """
    check = builder.checks() if builder else lambda: None
    check()
    if not is_remote(out):
        yield out
        return
    store, tar = Store(out), f"{SHARD_FOLDER}/{shard}"
    sidecar = str(Path(tar).with_suffix(".json"))
    with scratch() as folder:
        make_folder(folder / SHARD_FOLDER)
        # What a task that died, or an earlier build, has left under these names is compared first.
        there = store.objects(SHARD_FOLDER, f"{Path(shard).stem}.").keys()
        early = EarlyUpload(store, tar, folder / tar) if store.takes_parts and tar not in there else None
        try:
            yield folder
        except BaseException:
            if early is not None:
                early.give_up()
            raise
        content = (folder / sidecar).read_bytes()
        if (folder / tar).exists():
            sha256, size = json.loads(content)["sha256"], (folder / tar).stat().st_size
            upload = early.arrive(sha256) if early is not None else None
            if upload is not None and hand_over is not None and not there:
                hand_over(Arrived(tar, size, sha256, upload, content))
                return
            if upload is None or not put_together(store, tar, upload, size, check):
                _put_once(store, tar, size, sha256, check, lambda: store.upload(tar, folder / tar), tar in there)
        elif early is not None:
            early.give_up()
        _put_sidecar(store, sidecar, content, check, sidecar in there)


def complete(out: Path, arrived: Arrived, check: Check) -> bool:
    """Put together the tar of a shard, then put its sidecar; False where its task is to run again, for which nothing is left.

    Raises:
        BusyError: another one builds.
        StorageError, DatasetError: the store cannot be written to, or asked.
    """
    store, tar = Store(out), arrived.tar
    if not put_together(store, tar, arrived.upload, arrived.size, check) and not _holds(store, tar, arrived.size, arrived.sha256):
        return False
    _put_sidecar(store, str(Path(tar).with_suffix(".json")), arrived.sidecar, check, False)
    return True


def _put_sidecar(store: Store, name: str, content: bytes, check: Check, there: bool) -> None:
    # It holds its own digest, and need not be asked for its size.
    _put_once(store, name, len(content), hashlib.sha256(content).hexdigest(), check, lambda: store.create(name, content), there)


def _holds(store: Store, name: str, size: int, sha256: str) -> bool:
    return store.size(name) == size and store.sha256(name) == sha256


def _put_once(store: Store, name: str, size: int, sha256: str, check: Check, put: Callable[[], bool], there: bool) -> None:
    """Put bytes under a name of this build's own, of which a task that died, or one of an earlier build, may have put them.

    What is there is never written over unseen: a task that lags behind another builder's cannot change what that one has put.

    Args:
        size, sha256: of the bytes.
        put: puts them where nothing is, or says that something is.
        there: whether something was there before; else that is found out by putting.
    """
    for _ in range(_TRIES):
        if not there:
            check()
            if put():
                return
        check()
        if _holds(store, name, size, sha256):
            return
        store.remove(name)
        there = False
    raise ShardError(f"{store.url / name}: returns other bytes than were written; stop whatever else writes there")
