"""A data set behind a URL: its manifest copied once; of its shards what is read fetched into a bounded local cache."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sleepfm.data.cache import BlockCache, CachedShard, Index
from sleepfm.data.fetch import (
    MissingError,
    NoRoomError,
    OutdatedError,
    RefusedError,
    RemoteObject,
    fetch_blocks,
    in_parallel,
    refused,
    with_patience,
)
from sleepfm.data.format import DATASET_FILE, MANIFEST_FOLDER, MANIFEST_TABLES, SHARD_FOLDER
from sleepfm.errors import DatasetError, ShardError
from sleepfm.signals.files import DeniedError, location, random_file

CHUNK = 2**23
# A shard that could not be had is not asked for again at every item.
RETRY_SECONDS = 60.0
# Shards that are fetched at once, and those whose connections and handles are kept.
AT_ONCE = 4
KEPT_OPEN = 32


def is_url(path: str | Path) -> bool:
    """``scheme://…``, to be read with fsspec."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path), re.IGNORECASE) is not None


class RemoteFolder:
    """The folder of a data set at an fsspec URL (``s3://bucket/folder``, ``file:///…``, ``https://…``, ``memory://…``)."""

    def __init__(self, url: str) -> None:
        """Raises :class:`ConfigError` for a protocol that is unknown or whose package is not installed."""
        self.url = url.rstrip("/")
        location(self.url)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of file ``name`` below the folder.

        Raises:
            MissingError: there is none.
            ShardError: it could not be read.
        """
        try:
            with random_file(location(f"{self.url}/{name}"), spool=False) as file:
                for start in range(0, file.size, CHUNK):
                    yield file.read(start, CHUNK)
        except FileNotFoundError as error:
            raise MissingError(f"{self.url}/{name}: missing") from error
        except DeniedError as error:
            raise RefusedError(refused(f"{self.url}/{name}", error)) from error
        except OSError as error:
            raise ShardError(f"{self.url}/{name}: cannot be read ({error})") from error

    def read(self, name: str) -> bytes:
        """The whole content of a small file. Raises as :meth:`chunks`."""
        return with_patience(lambda: b"".join(self.chunks(name)))


def description_bytes(folder: RemoteFolder) -> bytes:
    """Content of the folder's ``dataset.json``. Raises :class:`DatasetError`."""
    try:
        return folder.read(DATASET_FILE)
    except MissingError:
        raise DatasetError(
            f"{folder.url}: no {DATASET_FILE} here: there is no such bucket or folder, a build into it has not finished (run it "
            f"again), or a data set was copied without it (its {DATASET_FILE} goes last)"
        ) from None


class RemoteShards:
    """Shards of one data set, of which blocks are fetched on demand. For any number of threads; a pickled copy fetches in another
    process. ``local`` is the folder in the cache that stands for the data set.
    """

    def __init__(self, folder: RemoteFolder, digest: str, cache: BlockCache) -> None:
        """Raises :class:`DatasetError` for a digest that is none."""
        if not re.fullmatch(r"[0-9a-f]{16,64}", digest):
            raise DatasetError(f"{folder.url}/{DATASET_FILE}: digest {digest!r} is no digest; build the data set again")
        self.url = folder.url
        self.local = cache.folder / digest
        self.cache = cache
        self._folder = folder
        self._digest = digest
        self._objects: dict[str, RemoteObject] = {}
        self._recent: OrderedDict[str, RemoteObject] = OrderedDict()
        self._failed: dict[str, tuple[float, ShardError]] = {}
        self._doubted: set[tuple[str, int]] = set()
        self._proved = False
        self._first = threading.Lock()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteShards, (self._folder, self._digest, self.cache)

    def copy_manifest(self, description: bytes, check: Callable[[Path, dict[str, Any], str], None]) -> None:
        """Copy the manifest into :attr:`local`, unless it is there; ``dataset.json`` comes last.

        Args:
            check: called with the temporary folder of the copy, the description and the URL, before the copy gets its name.

        Raises:
            DatasetError: a table is missing or cannot be read or written, or what ``check`` raises.
        """
        if (self.local / DATASET_FILE).is_file():
            return
        temporary = self.local.with_name(f"{self.local.name}.{uuid.uuid4().hex}.tmp")
        # One of an earlier version has fewer tables.
        tables = [table for table in MANIFEST_TABLES if table in json.loads(description).get("tables", MANIFEST_TABLES)]
        try:
            (temporary / MANIFEST_FOLDER).mkdir(parents=True)
            for table in tables:
                name = f"{MANIFEST_FOLDER}/{table}.parquet"
                (temporary / name).write_bytes(self._folder.read(name))
            check(temporary, json.loads(description), self.url)
            self.cache.claim(self._digest)
            (self.local / MANIFEST_FOLDER).mkdir(exist_ok=True)
            for table in tables:
                name = f"{MANIFEST_FOLDER}/{table}.parquet"
                (temporary / name).replace(self.local / name)
            (temporary / DATASET_FILE).write_bytes(description)
            (temporary / DATASET_FILE).replace(self.local / DATASET_FILE)
        except OSError as error:
            where = f"{self.url}: cannot copy its manifest to {self.local}"
            raise DatasetError(f"{where} ({error.strerror or error})") from error
        finally:
            for path in sorted(temporary.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            if temporary.is_dir():
                temporary.rmdir()

    def open(self, name: str, size: int) -> CachedShard:
        """What the cache holds of the shard ``name`` of ``size`` bytes.

        Raises:
            ShardError: the cache cannot be written to, or the shard behind the URL was replaced while it was read.
        """
        shard = self.cache.open(f"{self._digest}/{SHARD_FOLDER}/{name}", size)
        remote = self._object(name, size)
        if remote.changed(shard.version):
            # Another process has found another object, or an older one.
            remote.confirm()
        return shard

    def fetch(
        self,
        wanted: Mapping[str, tuple[int, Index, Index]],
        into: Mapping[str, CachedShard] | None = None,
        watch: Callable[[str], AbstractContextManager[None]] | None = None,
    ) -> dict[str, CachedShard | ShardError]:
        """Have bytes of shards in the cache: by its name, each shard with these bytes, or what keeps them from coming.

        Args:
            wanted: of each shard its size, and where ranges of bytes begin and end, [N] each.
            into: shards that are open and whose bytes are needed now, also where others have removed them from the cache
                meanwhile. Without, only room is taken that is of shards which nobody reads (:class:`NoRoomError` where there
                is too little).
            watch: entered while a shard is being fetched.
        """
        found: dict[str, CachedShard | ShardError] = {}

        def one(name: str, size: int, begin: Index, end: Index) -> None:
            try:
                with watch(name) if watch else nullcontext():
                    found[name] = self._fetch(name, size, begin, end, into.get(name) if into else None)
            except ShardError as error:
                found[name] = error

        in_parallel([partial(one, name, *ranges) for name, ranges in wanted.items()], AT_ONCE)
        return found

    def doubt(self, name: str, begin: int) -> bool:
        """Whether bytes of a shard that fail their check are to be fetched again: once."""
        if (name, begin) in self._doubted:
            return False
        self._doubted.add((name, begin))
        return True

    def _fetch(self, name: str, size: int, begin: Index, end: Index, into: CachedShard | None) -> CachedShard:
        since, failure = self._failed.get(name, (0.0, None))
        if failure is not None and time.monotonic() - since < RETRY_SECONDS:
            raise failure
        remote = self._object(name, size)
        try:
            shard = into or self.open(name, size)
            try:
                fetch_blocks(self.cache, shard, remote, begin, end, into is not None)
            except OutdatedError:
                self.cache.discard(f"{self._digest}/{SHARD_FOLDER}/{name}")
                shard = self.open(name, size)
                fetch_blocks(self.cache, shard, remote, begin, end, into is not None)
            return shard
        except NoRoomError:
            raise
        except ShardError as error:
            self._failed[name] = (time.monotonic(), error)
            raise

    def _object(self, name: str, size: int) -> RemoteObject:
        with self._lock:
            if name not in self._objects:
                self._objects[name] = RemoteObject(f"{self.url}/{SHARD_FOLDER}/{name}", size, self._asking)
            found = self._recent[name] = self._objects[name]
            self._recent.move_to_end(name)
            idle = self._recent.popitem(last=False)[1] if len(self._recent) > KEPT_OPEN else None
        if idle is not None:
            idle.close()
        return found

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a request. The first is made alone: a server without ranges sends whole shards, and one is enough to know."""
        if self._proved:
            yield
            return
        with self._first:
            yield
            self._proved = True
