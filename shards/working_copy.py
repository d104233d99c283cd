"""A data set behind a URL as a folder to work on.

Of a URL the driver has a copy of the small files: plan, description, tables, and what stands beside each shard. A tar is there as
a sparse file of its size. What works on a folder works on it, and :meth:`WorkingCopy.publish` brings the store to what it holds
by then, ``dataset.json`` removed first and put last: at no time does a store hold a description of what is not there.
"""

from __future__ import annotations

import hashlib
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

from shards.lease import LEASE_FOLDER
from shards.plan import PLAN_FILE
from shards.store import Found, Store
from sleepfm.data.format import DATASET_FILE, INDEX_FILE, MANIFEST_FOLDER, SHARD_FOLDER
from sleepfm.errors import BusyError, ConfigError, DatasetError, StorageError
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
