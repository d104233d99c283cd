"""Stores that are not S3: built into where their client puts under a condition by another name, refused where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

from shards.lease import only_builder
from shards.plan import Entry, ShardPlan
from shards.store import Store
from shards.task_folder import task_folder
from sleepfm.errors import BusyError, ConfigError
from sleepfm.files import write_atomic, write_json
from sleepfm.signals.files import location

pytestmark = pytest.mark.filterwarnings("ignore:.*not explicitly implemented")


class Plain(AsyncFileSystem):
    """Objects in memory."""

    protocol = "plainobjects"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}

    async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
        return self.objects[(await self._info(path))["name"]]

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file", "etag": str(hash(self.objects[path]))}

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path).rstrip("/") + "/"
        inside = {name.removeprefix(path).split("/")[0] for name in self.objects if name.startswith(path)}
        if not inside:
            raise FileNotFoundError(path)
        whole = {name: f"{path}{name}" in self.objects for name in inside}
        folder = {"size": 0, "type": "directory"}
        return [await self._info(path + name) if whole[name] else {**folder, "name": path + name} for name in sorted(inside)]

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        del self.objects[(await self._info(path))["name"]]

    async def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self.objects[self._strip_protocol(path)] = bytes(value)


class Overwriting(Plain):
    """Puts under a condition as adlfs does."""

    protocol = "overwritingobjects"

    async def _pipe_file(self, path: str, value: bytes, overwrite: bool = True, **kwargs: Any) -> None:
        if not overwrite and self._strip_protocol(path) in self.objects:
            raise FileExistsError(path)
        await super()._pipe_file(path, value)

    async def _put_file(self, lpath: str, rpath: str, overwrite: bool = True, max_concurrency: int = 1, **kwargs: Any) -> None:
        await self._pipe_file(rpath, Path(lpath).read_bytes(), overwrite)


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    for kind in (Plain, Overwriting):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    yield
    Plain.objects.clear()


def test_a_client_with_the_condition_of_azure_is_built_into() -> None:
    place = location("overwritingobjects://container/out")
    shard = ShardPlan("shard-000000.tar", (Entry("a.edf", 1, "a"),))
    with only_builder(place, 1, print) as (builder, check):
        check()
        with pytest.raises(BusyError), only_builder(place, 1, print):
            pytest.fail("two at once")
        with task_folder(place, shard.name, builder) as folder:
            write_atomic(folder / "shards/shard-000000.tar", b"tar")
            write_json(folder / "shards/shard-000000.json", {"sha256": "0"})
        assert not Store(place).create("shards/shard-000000.tar", b"another")
    found = {name.rpartition("/")[2]: content for name, content in Plain.objects.items() if "/shards/" in name}
    assert found.keys() == {"shard-000000.tar", "shard-000000.json"} and found["shard-000000.tar"] == b"tar"


def test_a_client_without_one_is_refused_by_the_names_of_those_that_have_it() -> None:
    said = r"plainobjects://.*s3fs, gcsfs \(2024\.12 and later\) and adlfs"
    with pytest.raises(ConfigError, match=said), only_builder(location("plainobjects://container/out"), 1, print):
        pytest.fail("two could build at once")
    assert not Plain.objects
