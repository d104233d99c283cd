"""Objects below a URL (``s3://bucket/folder``): listed, read, put whole and removed through fsspec.

An object is there once its last byte has arrived, under its name, or not at all. Stores fail and come back: what is asked is
asked again a few times. Credentials and endpoints are those of fsspec's usual configuration and environment.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from sleepfm.errors import ConfigError, DatasetError, StorageError
from sleepfm.signals.denied import is_denied
from sleepfm.signals.files import refresh, size_and_sha256

ATTEMPTS = 3  # beside those that a client makes by itself
FIRST_PAUSE = 0.5
PART_BYTES = 8 * 2**20  # of an upload in parts, of which a few are in memory at once
PARTS_AT_ONCE = 3
# What a store calls a state of an object: by any of these fsspec's clients tell another one.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "created")
# Rights that a build needs, in S3's words too.
LISTING = "list objects (s3:ListBucket)"
READING = "read objects (s3:GetObject)"
PUTTING = "put objects (s3:PutObject)"
DELETING = "delete objects (s3:DeleteObject)"
DROPPING = "list and drop uploads in parts (s3:ListBucketMultipartUploads, s3:AbortMultipartUpload)"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Found:
    """An object of a listing: its bytes, and what changes with its content."""

    size: int
    version: str


class Store:
    """The objects below ``url``; names are relative to it, with slashes."""

    def __init__(self, url: Path) -> None:
        self.url = url
        self._fs: Any = cast(Any, url).fs
        self._root: str = cast(Any, url).path.rstrip("/")

    def objects(self, folder: str = "", beginning: str = "") -> dict[str, Found]:
        """Every object at any depth below ``folder``, which need not exist, whose name in it has this ``beginning``.

        One request for some thousands of them. Raises :class:`DatasetError`.
        """
        prefix = self._root + "/"
        options = {"prefix": beginning} if beginning and self._takes("_find", "prefix") else {}
        found = self._listed(folder, lambda: self._fs.find(self._key(folder), detail=True, **options).items())
        # Consoles make objects that stand for folders.
        begin = self._key(f"{folder}/{beginning}" if folder else beginning) if beginning else prefix
        keys = {key: info for key, info in found if key.startswith(begin) and not key.endswith("/") and info["type"] == "file"}
        return {key.removeprefix(prefix): _found(info) for key, info in keys.items()}

    def top(self) -> dict[str, Found | None]:
        """What stands directly below the URL: objects, and folders as None. Raises :class:`DatasetError`."""
        listed = self._listed("", lambda: self._fs.ls(self._root, detail=True))
        entries = {entry["name"].rstrip("/").removeprefix(self._root).lstrip("/"): entry for entry in listed}
        # A store's listing may hold the object that stands for the folder itself.
        return {name: None if entry["type"] == "directory" else _found(entry) for name, entry in entries.items() if name}

    def _listed(self, folder: str, ask: Callable[[], Iterable[_T]]) -> list[_T]:
        try:
            return list(self._reading(folder, ask, LISTING))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """The content of an object. Raises :class:`FileNotFoundError`, or :class:`DatasetError` where it cannot be read."""
        # In one request: what is read whole is small, and need not be asked for its size.
        options = {"max_concurrency": 1} if self._takes("_cat_file", "max_concurrency") else {}
        return self._reading(name, lambda: bytes(self._fs.cat_file(self._key(name), **options)))

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none. Raises :class:`DatasetError`."""
        try:
            return int(self._reading(name, lambda: self._fs.info(self._key(name)))["size"])
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str:
        """Hexadecimal SHA-256 of an object. Raises as :meth:`read`."""
        return self._reading(name, lambda: size_and_sha256(self.url / name)[1])

    def download(self, name: str, file: Path) -> None:
        """Copy an object to the local ``file``. Raises as :meth:`read`, and :class:`OSError` for ``file``."""
        with file.open("wb"):  # what is wrong on this side is no fault of the store
            pass
        self._reading(name, lambda: self._fs.get_file(self._key(name), str(file)))

    def put(self, name: str, content: bytes) -> None:
        """Put ``content`` in the place of what is there. Raises :class:`StorageError`."""
        self._writing(name, lambda: self._fs.pipe_file(self._key(name), content), PUTTING)

    def create(self, name: str, content: bytes) -> bool:
        """Put ``content`` where nothing is; False where something is, which stays.

        True and False say what the store has decided: where an answer was lost and the request made again, its own object counts
        as another's, and the caller compares. Raises :class:`StorageError`.
        """
        options = self._condition("_pipe_file")
        return self._created(name, lambda: self._fs.pipe_file(self._key(name), content, **options))

    def upload(self, name: str, file: Path) -> bool:
        """:meth:`create` from a local file, in parts where it is large; parts of an upload that breaks off are no object."""
        with file.open("rb"):
            pass
        options = self._condition("_put_file")
        if self.takes_parts:
            options |= {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        if not self._created(name, lambda: self._fs.put_file(str(file), self._key(name), **options)):
            return False
        if (size := self.size(name)) != file.stat().st_size:
            raise StorageError(f"{self.url / name}: {size} bytes arrived of {file.stat().st_size}; run the same command again")
        return True

    @property
    def takes_parts(self) -> bool:
        """Whether :meth:`begin` is to be had: of a client of S3."""
        return hasattr(self._fs, "call_s3")

    def begin(self, name: str) -> Upload:
        """An upload of which parts are sent, maybe several at once. Raises what the client does."""
        return Upload(self._fs, self._key(name))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there. Raises :class:`StorageError`."""

        def gone() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._key(name))

        self._writing(name, gone, DELETING)

    def abandon_uploads(self, folder: str, pattern: str) -> None:
        """Drop the parts of uploads below ``folder`` that broke off, where the store keeps such (S3), by names in it.

        Raises:
            StorageError: the store does not let them be dropped.
        """
        if not self.takes_parts:
            return
        bucket, _, root = self._key(folder).partition("/")
        listed = self._writing(
            folder, lambda: self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{root}/"), DROPPING
        )
        for upload in listed.get("Uploads", ()):
            if upload["Key"].startswith(f"{root}/") and re.fullmatch(pattern, upload["Key"].removeprefix(f"{root}/")):
                self._writing(folder, partial(self._fs.abort_mpu, bucket, upload["Key"], upload["UploadId"]), DROPPING)

    def require_conditional(self) -> None:
        """Whether the client of this protocol puts under a condition.

        Raises:
            ConfigError: it does not: for what fsspec itself does instead, looking first and then writing, two may write at once.
        """
        if not self._condition("_pipe_file"):
            raise ConfigError(refusal(self.url))

    def _condition(self, method: str) -> dict[str, Any]:
        """With what the client's ``method`` puts only where nothing is; empty where it knows nothing of the kind."""
        if self._takes(method, "mode"):  # s3fs (If-None-Match), gcsfs (ifGenerationMatch)
            return {"mode": "create"}
        if self._takes(method, "overwrite"):  # adlfs (If-None-Match)
            return {"overwrite": False}
        return {}

    def _takes(self, method: str, parameter: str) -> bool:
        """Whether the client has a ``method`` of its own with this parameter."""
        from fsspec.asyn import AsyncFileSystem

        found = getattr(type(self._fs), method, None)
        return found not in (None, getattr(AsyncFileSystem, method)) and parameter in inspect.signature(found).parameters

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _created(self, name: str, put: Callable[[], object]) -> bool:
        try:
            self._writing(name, put, PUTTING)
        except FileExistsError:
            return False
        return True

    def _reading(self, name: str, ask: Callable[[], _T], right: str = READING) -> _T:
        try:
            return self._asked(ask, fresh=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            if is_denied(error):
                raise DatasetError(self._denied(name, right, error)) from error
            raise DatasetError(
                f"{self.url / name}: cannot be read ({_said(error)}); check the store, its address and the credentials, then "
                "run the same command again"
            ) from error

    def _writing(self, name: str, ask: Callable[[], _T], right: str) -> _T:
        try:
            return self._asked(ask)
        except FileExistsError:
            raise
        except Exception as error:
            if is_denied(error):
                raise StorageError(self._denied(name, right, error)) from error
            raise StorageError(
                f"{self.url / name}: cannot be written ({_said(error)}); check the store, its address and the credentials, "
                "then run the same command again: what is finished is kept"
            ) from error

    def _denied(self, name: str, right: str, error: Exception) -> str:
        place = self.url / name if name else self.url
        return (
            f"{place}: the store does not let these credentials {right} ({_said(error)}); give them that right, or others in "
            "the environment of every node, then run the same command again: what is finished is kept"
        )

    def _asked(self, ask: Callable[[], _T], fresh: bool = False) -> _T:
        """What ``ask`` returns, after some attempts. The clients of stores raise little that is an :class:`OSError`."""
        for attempt in range(ATTEMPTS):
            try:
                if fresh:
                    refresh(self.url)
                return ask()
            except Exception as error:
                if _condition_failed(error):
                    raise FileExistsError(str(error)) from error
                # Nothing there for a reader is an answer; for a writer it may be an upload that the store has lost.
                answered = isinstance(error, FileExistsError) or (fresh and isinstance(error, FileNotFoundError))
                if answered or is_denied(error):
                    raise
                if attempt == ATTEMPTS - 1:
                    raise
            time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")


class Upload:
    """An object of S3 on its way in parts, which are no object until :meth:`commit`. Methods raise what the client does.

    Another process may be given it when parts have arrived, to commit or to discard them.
    """

    def __init__(self, fs: Any, key: str) -> None:
        self._fs = fs
        bucket, _, name = key.partition("/")
        self._object = {"Bucket": bucket, "Key": name}
        self._id = self._call("create_multipart_upload", **self._object)["UploadId"]
        self._tags: dict[int, str] = {}

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._fs.call_s3(method, **arguments)

    def send(self, number: int, part: bytes) -> None:
        """Send part ``number``, from 1 on; all but the last have :data:`PART_BYTES`. Several threads may."""
        answer = self._call("upload_part", **self._object, UploadId=self._id, PartNumber=number, Body=part)
        self._tags[number] = answer["ETag"]

    def commit(self) -> None:
        """Make the parts an object, where none of its name is."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(self._tags.items())]
        self._call(
            "complete_multipart_upload", **self._object, UploadId=self._id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )

    def discard(self) -> None:
        """Drop the parts."""
        self._call("abort_multipart_upload", **self._object, UploadId=self._id)


def _found(info: dict[str, Any]) -> Found:
    return Found(int(info["size"]), str([info[name] for name in _VERSIONS if name in info]))


def refusal(url: Path) -> str:
    """What to say of a store that knows no condition."""
    return (
        f"{url}: this store, or fsspec's client for it, puts nothing under the condition that nothing is there yet "
        "(If-None-Match), by which builds keep out of one another's way; clients that do are s3fs, gcsfs (2024.12 and later) and "
        "adlfs. Build into a folder and copy it there, dataset.json last, or use another store"
    )


def _condition_failed(error: Exception) -> bool:
    """Whether a store has said that its condition does not hold; not all of them say which, as S3 does."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def _said(error: Exception) -> str:
    return " ".join(f"{getattr(error, 'strerror', None) or error or type(error).__name__}".split())
