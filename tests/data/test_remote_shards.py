"""Data sets behind URLs: the same items as from the folder, through a cache that is bounded and shared."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from made_nights import make_dataset, make_night

import sleepfm.data.remote
from sleepfm.data.ahead import AT_ONCE, fetching_ahead
from sleepfm.data.cache import PART, FileCache
from sleepfm.data.dataset import Dataset, read_description
from sleepfm.data.format import MANIFEST_TABLES
from sleepfm.data.in_order import iter_eval
from sleepfm.data.stream import EpochStream, Reading
from sleepfm.errors import ConfigError, DatasetError, ShardError

OVERRIDES = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=10"]
READING = Reading(1, 2)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Dataset:
    """6 shards of one recording each, about 250 kB a shard."""
    nights = [make_night(f"n{index:02d}", 20, ("EEG_C4", "ECG")) for index in range(6)]
    return make_dataset(tmp_path_factory.mktemp("remote") / "out", nights, per_shard=1, overrides=OVERRIDES)


@pytest.fixture
def url(local) -> Iterator[str]:
    """The data set in fsspec's memory file system."""
    files = fsspec.filesystem("memory")
    files.put(str(local.path), "/cohort", recursive=True)
    yield "memory://cohort"
    files.rm("/cohort", recursive=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sleepfm.data.remote, "FIRST_PAUSE", 0.01)


def cache(folder: Path, local: Dataset, shards: float = 100) -> FileCache:
    """Room for the manifest and ``shards`` shards."""
    manifest = sum(path.stat().st_size for path in Path(local.path).rglob("*.parquet")) + 10_000
    return FileCache(folder / "cache", manifest + int(shards * local.shard_bytes.max()))


def items(dataset: Dataset, start: int = 0, count: int = 200, reading: Reading = READING) -> torch.Tensor:
    return EpochStream(dataset, "pretrain", ["EEG_C4", "ECG"], reading).batch(start, count).signals


def settled(folder: Path) -> None:
    """Until no part is being fetched by a reader-ahead."""
    for _ in range(200):
        if not list(folder.rglob(f"*{PART}")):
            return
        time.sleep(0.02)


def test_a_url_gives_what_the_folder_gives(local, url, tmp_path):
    remote = Dataset.open(url, cache(tmp_path, local))
    assert remote.digest == local.digest == read_description(url)["digest"]
    assert torch.equal(items(remote), items(local))
    for ours, theirs in zip(iter_eval(remote, "pretrain", ["ECG"], 4), iter_eval(local, "pretrain", ["ECG"], 4), strict=True):
        assert torch.equal(ours.signals, theirs.signals)
    again = Dataset.open(f"file://{local.path}", cache(tmp_path, local))
    assert torch.equal(items(again, 33), items(local, 33))


def test_only_what_is_read_is_fetched_and_once(local, url, tmp_path, monkeypatch):
    fetched = []
    chunks = sleepfm.data.remote.RemoteFolder.chunks

    def noted(self, name):
        fetched.append(name)
        return chunks(self, name)

    monkeypatch.setattr(sleepfm.data.remote.RemoteFolder, "chunks", noted)
    reading = Reading(0, 1, read_ahead=False)
    for _ in range(2):  # the second finds the shard in the cache
        items(Dataset.open(url, cache(tmp_path, local)), 0, 5, reading)
    assert sum(name.endswith(".tar") for name in fetched) == 1
    assert sum(name.endswith(".parquet") for name in fetched) == len(MANIFEST_TABLES)


def test_the_next_window_is_fetched_ahead(local, url, tmp_path):
    dataset = Dataset.open(url, cache(tmp_path, local))
    stream = EpochStream(dataset, "pretrain", ["ECG"], Reading(0, 2), require_good_quality=False)
    stream.batch(0, 1)
    for _ in range(200):
        if len(list(tmp_path.rglob("*.tar"))) == 4:
            break
        time.sleep(0.02)
    assert len(list(tmp_path.rglob("*.tar"))) == 4  # two of the window, two of the next


def test_recordings_in_order_are_fetched_some_at_once(local, url, tmp_path, monkeypatch):
    order, under_way, most = [], set(), 0
    chunks = sleepfm.data.remote.RemoteFolder.chunks

    def slow(self, name):
        nonlocal most
        if not name.endswith(".tar"):
            return chunks(self, name)
        order.append(name)
        under_way.add(name)
        time.sleep(0.1)
        most = max(most, len(under_way))
        under_way.remove(name)
        return chunks(self, name)

    monkeypatch.setattr(sleepfm.data.remote.RemoteFolder, "chunks", slow)
    remote = Dataset.open(url, cache(tmp_path, local))
    steps = fetching_ahead(remote, [0, 1, 2, 3, 5])
    assert next(steps) == 0
    assert "shards/shard-000000.tar" in order and "shards/shard-000000.tar" not in under_way
    assert len(order) <= 1 + AT_ONCE and "shards/shard-000005.tar" not in order
    assert list(steps) == [1, 2, 3, 5]
    assert most == AT_ONCE and len(order) == 5
    for name in fsspec.filesystem("memory").glob("/cohort/shards/*.tar"):
        fsspec.filesystem("memory").rm(name)
    remote = Dataset.open(url, cache(tmp_path / "other", local))
    assert list(fetching_ahead(remote, [0, 1])) == [0, 1]  # that they are missing is said where they are read
    with pytest.raises(ShardError, match="missing"):
        next(iter_eval(remote, "pretrain", ["ECG"]))


def test_the_cache_stays_below_its_bound_and_keeps_what_was_asked_for_last(local, url, tmp_path):
    small = cache(tmp_path, local, 2.5)
    dataset = Dataset.open(url, small)
    reading = Reading(1, 2, read_ahead=False)
    for start in range(0, 3 * 200, 20):
        assert torch.equal(items(dataset, start, 20, reading), items(local, start, 20, reading))
        assert sum(path.stat().st_size for path in small.folder.rglob("*") if path.is_file()) <= small.limit
    order = []
    for shard in (0, 1, 0, 2):
        dataset.shard_file(shard)
        order.append(sorted(path.name[-5] for path in small.folder.rglob("*.tar")))
        time.sleep(0.01)
    assert order[-1] == ["0", "2"]  # 1 had not been asked for the longest


def test_a_shard_that_does_not_fit_at_all_says_so(local, url, tmp_path):
    dataset = Dataset.open(url, FileCache(tmp_path, 1000))
    with pytest.raises(ShardError, match="SLEEPFM_CACHE_GIB"):
        dataset.shard_file(0)


@pytest.mark.parametrize("fault", ["flipped", "short", "long", "missing"])
def test_a_shard_that_is_not_the_manifests_never_gets_its_name(local, url, tmp_path, fault):
    files = fsspec.filesystem("memory")
    name = f"/cohort/shards/{local.shard_paths[3].name}"
    content = bytearray(files.cat(name))
    if fault == "flipped":
        content[len(content) // 2] ^= 1
    elif fault == "short":
        del content[-1:]
    elif fault == "long":
        content += b"0"
    files.rm(name)
    if fault != "missing":
        files.pipe(name, bytes(content))
    dataset = Dataset.open(url, cache(tmp_path, local))
    expected = {"flipped": "SHA-256", "short": "bytes came", "long": "more bytes", "missing": "missing"}[fault]
    with pytest.raises(ShardError, match=f"shard-000003.*{expected}"):
        dataset.shard_file(3)
    settled(tmp_path)
    assert not list(tmp_path.rglob("shard-000003*"))
    stream = EpochStream(dataset, "pretrain", ["ECG"], Reading(0, 6, max_corrupt=0.5), require_good_quality=False)
    assert "n03" not in stream.batch(0, len(stream)).record
    assert f"{url}/shards/shard-000003.tar" in "".join(stream.report.lines())


def test_a_store_that_fails_now_and_then_is_asked_again(local, url, tmp_path, monkeypatch):
    chunks = sleepfm.data.remote.RemoteFolder.chunks
    failures = iter([True, True, False] * 50)

    def flaky(self, name):
        for number, chunk in enumerate(chunks(self, name)):
            if next(failures) and number == 0:
                raise ShardError(f"{name}: connection reset")
            yield chunk

    monkeypatch.setattr(sleepfm.data.remote.RemoteFolder, "chunks", flaky)
    reading = Reading(1, 2, read_ahead=False)
    assert torch.equal(items(Dataset.open(url, cache(tmp_path, local)), reading=reading), items(local, reading=reading))


def test_a_manifest_that_does_not_belong_is_refused(local, url, tmp_path):
    files = fsspec.filesystem("memory")
    other = make_dataset(tmp_path / "other", [make_night("x", 20, ("ECG",))], overrides=OVERRIDES)
    files.put(str(other.path / "manifest" / "records.parquet"), "/cohort/manifest/records.parquet")
    with pytest.raises(DatasetError, match=r"not the one that dataset\.json describes"):
        Dataset.open(url, cache(tmp_path, local))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_cannot_be_opened_is_an_error_with_its_url(tmp_path):
    with pytest.raises(DatasetError, match=r"memory://nowhere: no dataset\.json"):
        Dataset.open("memory://nowhere", FileCache(tmp_path, 10**9))
    with pytest.raises(ConfigError, match="nosuchscheme"):
        Dataset.open("nosuchscheme://bucket", FileCache(tmp_path, 10**9))


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """A local S3 server; its address."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_shards_come_from_an_object_store(local, object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir("nights")
    store.put(str(local.path), "nights/cohort", recursive=True)
    # Two ranks of one node, each through the folder that they share, and a third node with one of its own.
    small = cache(tmp_path, local, 3.5)
    first, second = Dataset.open("s3://nights/cohort", small), Dataset.open("s3://nights/cohort", small)
    for start in range(0, 120, 20):
        assert torch.equal(items(first, start, 10), items(local, start, 10))
        assert torch.equal(items(second, start + 10, 10), items(local, start + 10, 10))
    settled(small.folder)
    assert sum(path.stat().st_size for path in small.folder.rglob("*") if path.is_file()) <= small.limit
    other = Dataset.open("s3://nights/cohort", cache(tmp_path / "other", local))
    assert torch.equal(items(other, 60, 60), items(local, 60, 60))
    store.rm("nights/cohort/shards/shard-000001.tar")
    shutil.rmtree(small.folder)
    with pytest.raises(ShardError, match=r"s3://nights/cohort/shards/shard-000001\.tar: missing"):
        Dataset.open("s3://nights/cohort", small).shard_file(1)
