"""A data set behind a URL: its manifest copied once, its shards fetched into a bounded local cache as they are read."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sleepfm.data.cache import FileCache
from sleepfm.data.format import DATASET_FILE, MANIFEST_FOLDER, MANIFEST_TABLES, SHARD_FOLDER
from sleepfm.errors import DatasetError, ShardError
from sleepfm.signals.files import location, random_file

log = logging.getLogger(__name__)

CHUNK = 2**23
ATTEMPTS = 3
FIRST_PAUSE = 0.5
# A shard that could not be had is not asked for again at every item.
RETRY_SECONDS = 60.0


class MissingError(ShardError):
    """There is no such file behind a URL; asking again does not help."""


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
        except OSError as error:
            raise ShardError(f"{self.url}/{name}: cannot be read ({error})") from error

    def read(self, name: str) -> bytes:
        """The whole content of a small file. Raises as :meth:`chunks`."""
        return _with_patience(lambda: b"".join(self.chunks(name)))


def description_bytes(folder: RemoteFolder) -> bytes:
    """Content of the folder's ``dataset.json``. Raises :class:`DatasetError`."""
    try:
        return folder.read(DATASET_FILE)
    except MissingError:
        raise DatasetError(
            f"{folder.url}: no {DATASET_FILE} here; copy a whole data set there, its {DATASET_FILE} last"
        ) from None


class RemoteShards:
    """Shards of one data set, fetched on demand. ``local`` is the folder in the cache that stands for the data set."""

    def __init__(self, folder: RemoteFolder, digest: str, cache: FileCache) -> None:
        """Raises :class:`DatasetError` for a digest that is none."""
        if not re.fullmatch(r"[0-9a-f]{16,64}", digest):
            raise DatasetError(f"{folder.url}/{DATASET_FILE}: digest {digest!r} is no digest; build the data set again")
        self.url = folder.url
        self._folder = folder
        self._cache = cache
        self._digest = digest
        self._failed: dict[str, tuple[float, str]] = {}
        self.local = cache.folder / digest

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
            self._cache.claim(self._digest)
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

    def get(self, shard: str, size: int, sha256: str) -> Path:
        """The local path of a shard, fetched if it is not in the cache.

        Raises:
            ShardError: it cannot be had, after some attempts, or is not what the manifest says.
        """
        since, reason = self._failed.get(shard, (-RETRY_SECONDS, ""))
        if time.monotonic() - since < RETRY_SECONDS:
            raise ShardError(reason)
        name = f"{SHARD_FOLDER}/{shard}"
        try:
            return _with_patience(
                lambda: self._cache.get(f"{self._digest}/{name}", size, sha256, lambda: self._folder.chunks(name))
            )
        except ShardError as error:
            reason = str(error).replace(f"{self._digest}/{name}", f"{self.url}/{name}", 1)
            self._failed[shard] = (time.monotonic(), f"{reason}; restore it or build again")
            raise ShardError(self._failed[shard][1]) from error


def _with_patience(attempt: Callable[[], Any]) -> Any:
    """What ``attempt`` returns; networks fail and come back."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except MissingError:
            raise
        except ShardError as error:
            if number == ATTEMPTS - 1:
                raise
            log.warning("%s; trying again", error)
            time.sleep(FIRST_PAUSE * 4**number)
    raise AssertionError("unreachable")
