"""A data set behind a URL as a folder to work on, and the folder in which a task makes a shard.

Of a URL the driver has a copy of the small files: plan, description, tables, and what stands beside each shard. A tar is there as
a sparse file of its size. What works on a folder works on it, and :meth:`WorkingCopy.publish` brings the store to what it holds
by then, ``dataset.json`` removed first and put last: at no time does a store hold a description of what is not there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.early_upload import EarlyUpload
from shards.lease import LEASE_FOLDER, Builder, Check
from shards.plan import PLAN_FILE
from shards.store import Found, Store
from sleepfm.data.format import DATASET_FILE, INDEX_FILE, MANIFEST_FOLDER, SHARD_FOLDER
from sleepfm.errors import BusyError, ConfigError, DatasetError, ShardError, StorageError
from sleepfm.files import make_folder, sha256_file, writing
from sleepfm.lock import LOCK_FILE, locked
from sleepfm.signals.files import is_remote, location

log = logging.getLogger(__name__)

_SHARD = r"shard-[0-9]{6,}"
# The files that a driver reads and writes, in the order in which it puts them.
_SMALL = tuple(
    re.compile(name)
    for name in (
        re.escape(PLAN_FILE),
        rf"{SHARD_FOLDER}/{_SHARD}\.json",
        rf"{MANIFEST_FOLDER}/[\w-]+\.(?:parquet|json)",
        re.escape(INDEX_FILE),
        re.escape(DATASET_FILE),
    )
)
_FETCHES_AT_ONCE = 16
_SCRATCH = "sleepfm-shards-"
# In every folder that :func:`scratch` makes, and in no other: a data set of the user's may have such a name, and a lock too.
_MARKER = ".scratch"
_ABANDONED_AFTER_S = 60.0
_TRIES = 3


def output_location(text: str) -> Path:
    """``OUT`` as a whole path, or as a URL without the slash at its end. Raises :class:`ConfigError` as :func:`location` does."""
    place = location(text)
    return place if is_remote(place) else place.resolve()


class WorkingCopy:
    """``folder`` is the data set's own, or the copy of what is behind ``url``."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.url = out
        self.folder = folder
        self._store = Store(out) if is_remote(out) else None
        self._pulled: dict[str, Found] = {}
        self._published: dict[str, str] = {}

    def pull(self) -> None:
        """Make the copy what the store holds now; nothing for a folder. Raises :class:`DatasetError`."""
        if self._store is None:
            return
        found = self._found(self._store)
        for name in self._pulled.keys() - found.keys():
            (self.folder / name).unlink(missing_ok=True)
            self._published.pop(name, None)
        changed = [name for name, state in found.items() if self._pulled.get(name) != state]
        for name in changed:
            make_folder((self.folder / name).parent)
        with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
            list(pool.map(lambda name: self._fetch(name, found[name]), changed))
        self._pulled = found

    def publish(self, check: Callable[[], None]) -> None:
        """Bring the store to what the copy holds; nothing for a folder.

        ``check`` is called before anything is written and raises where this process must not write any more.

        Raises:
            StorageError: the store cannot be written to.
        """
        if self._store is None:
            return
        paths = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        local = {name: sha256_file(path) for name, path in paths.items() if _rank(name) is not None}
        gone = self._published.keys() - local.keys()
        changed = {name for name, digest in local.items() if self._published.get(name) != digest}
        if changed - {PLAN_FILE} and DATASET_FILE in self._published:
            # Put again, last, also where it says the same as before.
            gone |= {DATASET_FILE}
            changed |= {DATASET_FILE} & local.keys()
        for name in sorted(gone, key=_order, reverse=True):
            check()
            self._store.remove(name)
            del self._published[name]
        for name in sorted(changed, key=_order):
            check()
            self._store.put(name, (self.folder / name).read_bytes())
            self._published[name] = local[name]

    def abandon_uploads(self) -> None:
        """Drop the parts of shards that workers which died have left in the store; nothing for a folder.

        They are no objects: where a store does not let them be dropped, that is a warning.
        """
        try:
            if self._store is not None:
                self._store.abandon_uploads(SHARD_FOLDER, rf"{_SHARD}\.(?:tar|json)")
        except StorageError as error:
            log.warning("parts of uploads that broke off may stay in the store and cost room: %s", error)

    def _found(self, store: Store) -> dict[str, Found]:
        """What is below the URL: all in the folders of a data set, and the names of what else there is."""
        found: dict[str, Found] = {}
        for name, state in store.top().items():
            if state is None and name in (SHARD_FOLDER, MANIFEST_FOLDER):
                found |= store.objects(name)
            elif name not in (LEASE_FOLDER, LOCK_FILE):  # the latter of a folder that was copied to the store
                found[name] = state or Found(0, "")
        return found

    def _fetch(self, name: str, found: Found) -> None:
        path = self.folder / name
        if _rank(name) is None:
            with writing(path), path.open("wb") as file:
                file.truncate(found.size)
            return
        assert self._store is not None
        content = self._store.read(name)
        with writing(path):
            path.write_bytes(content)
        self._published[name] = hashlib.sha256(content).hexdigest()


@contextmanager
def working_copy(out: Path) -> Iterator[WorkingCopy]:
    """A folder itself, or a copy of what is behind a URL, which vanishes at the end; errors name the URL.

    Raises:
        DatasetError: the store cannot be read.
    """
    if not is_remote(out):
        yield WorkingCopy(out, out)
        return
    with scratch() as folder:
        copy = WorkingCopy(out, folder)
        try:
            copy.pull()
            yield copy
        except (DatasetError, ConfigError) as error:
            error.args = tuple(copy_named(folder, out, arg) if isinstance(arg, str) else arg for arg in error.args)
            raise


def copy_named(folder: Path, out: Path, text: str) -> str:
    """``text`` about a working copy as one about the URL."""
    return text.replace(str(folder), str(out))


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """A file itself, or a copy of the one at a URL, which vanishes at the end.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: it cannot be read.
    """
    if not is_remote(path):
        yield path
        return
    with scratch() as folder:
        Store(path.parent).download(path.name, folder / path.name)
        yield folder / path.name


@contextmanager
def task_folder(out: Path, shard: str, builder: Builder | None) -> Iterator[Path]:
    """The folder in which a task makes ``shard``: that of the data set, or of a URL a folder on the worker's disk, from which tar
    and then sidecar are put into the store at the end.

    Args:
        builder: whose task this is; it must be the one that builds, when the task begins and before anything is put.

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
        if (folder / tar).exists():
            sha256 = json.loads((folder / sidecar).read_bytes())["sha256"]
            if early is None or not early.finish(sha256, check):
                _put_once(store, tar, folder / tar, check, lambda: store.upload(tar, folder / tar), tar in there)
        elif early is not None:
            early.give_up()
        content = (folder / sidecar).read_bytes()
        # It holds its own digest, and need not be asked for its size.
        _put_once(store, sidecar, folder / sidecar, check, lambda: store.create(sidecar, content), sidecar in there)


def _put_once(store: Store, name: str, file: Path, check: Check, put: Callable[[], bool], there: bool) -> None:
    """Put ``file`` under a name of this build's own, of which a task that died, or one of an earlier build, may have put it.

    What is there is never written over unseen: a task that lags behind another builder's cannot change what that one has put.

    Args:
        put: puts it where nothing is, or says that something is.
        there: whether something was there before; else that is found out by putting.
    """
    for _ in range(_TRIES):
        if not there:
            check()
            if put():
                return
        check()
        size = store.size(name)
        if size == file.stat().st_size and store.sha256(name) == sha256_file(file):
            return
        if size is not None:
            store.remove(name)
        there = False
    raise ShardError(f"{store.url / name}: returns other bytes than were written; stop whatever else writes there")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on this machine's disk (``TMPDIR``) that vanishes at the end; those of processes that died are removed.

    Raises:
        StorageError: it cannot be made.
    """
    place = Path(tempfile.gettempdir())
    with writing(place):
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    try:
        with locked(folder / LOCK_FILE, 0):
            # What is worked on has nothing of this beside it.
            inside = folder / "work"
            with writing(folder):
                (folder / _MARKER).touch()
                inside.mkdir()
            for other in place.glob(f"{_SCRATCH}*"):
                _remove_abandoned(other)
            yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder of :func:`scratch` for this user that no process holds any more; a new one may not be held yet."""
    with suppress(OSError):
        status = folder.lstat()
        if not (folder / _MARKER).is_file() or status.st_uid != os.getuid() or time.time() - status.st_mtime < _ABANDONED_AFTER_S:
            return
        with suppress(BusyError), locked(folder / LOCK_FILE, 0):
            shutil.rmtree(folder, ignore_errors=True)


def _order(name: str) -> tuple[int, str]:
    return _rank(name) or 0, name


def _rank(name: str) -> int | None:
    """The place of a small file in the order of putting; None for what is no such file."""
    return next((number for number, pattern in enumerate(_SMALL) if pattern.fullmatch(name)), None)
