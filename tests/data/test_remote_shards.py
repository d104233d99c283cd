"""Data sets behind URLs: the same items as from the folder, of the bytes that are wanted, each fetched once."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from made_nights import make_dataset, make_night
from store_front import StoreFront, store_front

import sleepfm.data.fetch
from sleepfm.constants import CHANNELS
from sleepfm.data.cache import BLOCK, BlockCache
from sleepfm.data.dataset import Dataset, read_description
from sleepfm.data.fetch import GROUP_BYTES, REQUEST_BYTES, requests
from sleepfm.data.format import CRC_MEMBER, QUALITY_MEMBER, channel_member, label_member
from sleepfm.data.in_order import iter_eval
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.errors import ConfigError, DatasetError, ShardError

SPLIT = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
STORED = ("EEG_C3", "EEG_C4", "EOG_L", "EMG_CHIN", "ECG", "AIRFLOW")
EPOCHS = 120
READING = Reading(1, 2)
PREFIX = "cohort"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Dataset:
    """8 shards of one recording each, in samples of the usual size: 720 kB a channel."""
    nights = [make_night(f"n{index:02d}", EPOCHS, STORED) for index in range(8)]
    return make_dataset(tmp_path_factory.mktemp("remote") / "out", nights, per_shard=1, overrides=SPLIT)


@pytest.fixture(scope="module")
def stored(local, s3) -> Iterator[StoreFront]:
    """The data set in the object store, behind a front whose address is in the environment."""
    s3.upload(local.path, PREFIX)
    with store_front(s3.endpoint) as front, pytest.MonkeyPatch.context() as environment:
        environment.setenv("FSSPEC_S3_ENDPOINT_URL", front.endpoint)
        # With the settings of each protocol, which are changed in place.
        before = copy.deepcopy(fsspec.config.conf)
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield front
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)


@pytest.fixture
def front(stored) -> StoreFront:
    """The front without faults, its counters at 0, when nothing is read ahead any more of what another test has begun."""
    stored.errors = stored.cuts = stored.pause = 0.0
    stored.ranges, stored.missing = True, ""
    settled()
    stored.forget()
    return stored


def settled() -> None:
    """Until nothing is being read ahead, also of streams that are gone."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "read ahead":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def memory_url(local) -> Iterator[str]:
    """The data set in fsspec's memory file system."""
    files = fsspec.filesystem("memory")
    files.put(str(local.path), "/cohort", recursive=True)
    yield "memory://cohort"
    files.rm("/cohort", recursive=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sleepfm.data.fetch, "FIRST_PAUSE", 0.01)


URL = f"s3://sleep/{PREFIX}"


def roomy(folder: Path) -> BlockCache:
    return BlockCache(folder / "cache", 10**9)


def items(dataset: Dataset, start: int = 0, count: int = 200, reading: Reading = READING) -> torch.Tensor:
    return EpochStream(dataset, "pretrain", ["EEG_C4", "ECG"], reading).batch(start, count).signals


def channel_bytes(dataset: Dataset, shards: int | None = None) -> int:
    """What a channel takes in all shards, or in some."""
    return (shards or len(dataset.shard_paths)) * EPOCHS * 6000


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_a_url_gives_what_the_folder_gives(local, memory_url, front, tmp_path, kind):
    url = {"memory": memory_url, "file": f"file://{local.path}", "s3": URL}[kind]
    remote = Dataset.open(url, roomy(tmp_path))
    assert remote.digest == local.digest == read_description(url)["digest"]
    assert torch.equal(items(remote), items(local))
    for ours, theirs in zip(iter_eval(remote, "pretrain", ["ECG"], 4), iter_eval(local, "pretrain", ["ECG"], 4), strict=True):
        assert torch.equal(ours.signals, theirs.signals)
        assert all(torch.equal(ours.labels[name], theirs.labels[name]) for name in theirs.labels)
    made = {"target": "stage", "labelled_only": True, "reading": READING}
    sequences = [SequenceStream(one, "pretrain", ["EEG_C4", "AIRFLOW"], 5, **made) for one in (remote, local)]
    ours, theirs = (stream.batch(7, 40) for stream in sequences)
    assert torch.equal(ours.signals, theirs.signals) and torch.equal(ours.labels["stage"], theirs.labels["stage"])


def test_a_pass_over_one_channel_fetches_that_channel_in_few_requests(local, front, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    stream = EpochStream(remote, "pretrain", ["ECG"], READING)
    expected = EpochStream(local, "pretrain", ["ECG"], READING)
    for start in range(0, len(stream), 50):
        count = min(50, len(stream) - start)
        assert torch.equal(stream.batch(start, count).signals, expected.batch(start, count).signals)
    settled()
    channel = channel_bytes(local)
    assert channel * 0.9 < front.shard_bytes() <= 1.1 * channel
    assert front.repeated() == 0
    # Two samples a recording: the channel of each, and what is small, which lies together.
    assert front.requests() <= 3 * 2 * 8
    # What a whole shard takes was never on this disk.
    assert remote.remote.cache.used() <= 1.15 * channel
    # A second pass asks for nothing.
    front.forget()
    stream.batch(len(stream), len(stream))
    EpochStream(Dataset.open(URL, roomy(tmp_path)), "pretrain", ["ECG"], READING).batch(0, 100)
    assert front.shard_bytes() == 0


def test_a_data_set_that_does_not_fit_is_fetched_once_a_pass_by_all_ranks_of_a_node(local, front, tmp_path):
    """Two ranks in step, whose cache has room for the windows of two shards that are read and read next, of the pass' four."""
    limit = int(2.2 * channel_bytes(local, 2) * 1.1)
    cache = BlockCache(tmp_path / "cache", limit)
    ranks = [EpochStream(Dataset.open(URL, cache), "pretrain", ["ECG"], READING) for _ in range(2)]
    expected = EpochStream(local, "pretrain", ["ECG"], READING)
    for pass_number in range(2):
        front.forget()
        first = pass_number * len(expected)
        most = 0
        for start in range(first, first + len(expected) - 24, 24):
            for number, rank in enumerate(ranks):
                begin = start + 12 * number
                assert torch.equal(rank.batch(begin, 12).signals, expected.batch(begin, 12).signals)
                most = max(most, cache.used())
        # Those of the first window of the next pass are read ahead before this one has ended.
        next_pass = ranks[0]._order.ahead(first + len(expected) - 1)
        early = {f"{PREFIX}/shards/{local.shard_paths[shard].name}" for shard in next_pass.shards}
        given = StoreFront(given={key: ranges for key, ranges in front.given.items() if key not in early})
        assert given.repeated() == 0
        assert front.shard_bytes() <= 1.1 * (channel_bytes(local) + channel_bytes(local, 2))
        assert limit / 2 < most <= limit


def test_a_cache_of_less_than_a_window_is_slow_but_right(local, front, tmp_path):
    limit = int(0.7 * channel_bytes(local, 2))
    cache = BlockCache(tmp_path / "cache", limit)
    ranks = [EpochStream(Dataset.open(URL, cache), "pretrain", ["ECG"], READING) for _ in range(2)]
    expected = EpochStream(local, "pretrain", ["ECG"], READING)
    for begin in range(0, 320, 40):
        for start, rank in zip((begin, begin + 20), ranks, strict=True):
            assert torch.equal(rank.batch(start, 20).signals, expected.batch(start, 20).signals)
            assert cache.used() <= limit
    assert front.repeated() > 0


def test_reading_processes_share_what_is_fetched(local, front, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    stream, expected = (EpochStream(one, "pretrain", ["ECG"], READING) for one in (remote, local))
    plan = [(start, 40) for start in range(0, 400, 40)]
    with Prefetcher(stream, plan, workers=2) as batches:
        for (start, count), batch in zip(plan, batches, strict=True):
            assert torch.equal(batch.signals, expected.batch(start, count).signals)
    assert front.repeated() == 0 and front.shard_bytes() > 0
    assert pickle.loads(pickle.dumps(remote)).remote.url == URL


def test_what_needs_labels_alone_fetches_labels_alone(local, front, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    stream = SequenceStream(remote, "pretrain", ["ECG"], 10, reading=READING, target="apnea", labelled_only=True)
    assert len(stream) > 0
    assert front.shard_bytes() < 0.1 * channel_bytes(local)


def test_recordings_in_order_are_fetched_some_shards_ahead(local, front, tmp_path):
    front.pause = 0.02
    remote = Dataset.open(URL, roomy(tmp_path))
    batches = iter_eval(remote, "pretrain", ["ECG"], windows=EPOCHS)
    next(batches)
    assert 1 <= sum(key.endswith(".tar") for key in front.given) <= 5
    assert len(list(batches)) == 7
    assert front.repeated() == 0 and front.shard_bytes() <= 1.1 * channel_bytes(local)


def test_a_store_that_errs_dawdles_and_cuts_gives_the_same_items(local, front, tmp_path):
    front.errors, front.cuts, front.pause = 0.1, 0.1, 0.02
    remote = Dataset.open(URL, roomy(tmp_path))
    stream, expected = (EpochStream(one, "pretrain", ["EEG_C4", "ECG"], READING) for one in (remote, local))
    for start in range(0, 600, 100):
        assert torch.equal(stream.batch(start, 100).signals, expected.batch(start, 100).signals)
    assert front.failed >= 3 and stream.report.skipped == 0


def test_a_store_that_ignores_ranges_is_refused_by_name(local, front, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    front.ranges = False
    with pytest.raises(ShardError, match=rf"{URL}/shards/shard-000000\.tar: its server sent \d+ bytes when \d+ were asked for"):
        ShardReader(remote).read_bytes(0, 2 * BLOCK, 100)
    assert front.requests() == 1
    stream = EpochStream(remote, "pretrain", ["ECG"], READING)
    with pytest.raises(ShardError, match="its server sent"):
        stream.batch(0, 20)
    assert remote.remote.cache.used() < channel_bytes(local)


@pytest.fixture
def altered(s3, local, front, tmp_path) -> Iterator[object]:
    """Something that changes the object of a shard in the store, which is put back afterwards."""
    touched = set()

    def alter(number: int, place: int | None = None) -> str:
        path = local.shard_paths[number]
        content = bytearray(path.read_bytes())
        if place is None:
            del content[-BLOCK:]
        else:
            content[place] ^= 0x55
        touched.add(path)
        return s3.put(f"{PREFIX}/shards/{path.name}", bytes(content))

    yield alter
    for path in touched:
        s3.put(f"{PREFIX}/shards/{path.name}", path.read_bytes())


def test_an_object_that_is_replaced_while_it_is_read_is_named(local, front, altered, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    reader = ShardReader(remote)
    reader.read_bytes(3, 0, 100)
    altered(3, 600)
    expected = rf"{URL}/shards/shard-000003\.tar: replaced while it was read \(version \S+ before, \S+ now\)"
    with pytest.raises(ShardError, match=expected):
        reader.read_bytes(3, 500_000, 100)
    # Another process finds the new object, and none of the blocks of the old one.
    other = ShardReader(Dataset.open(URL, roomy(tmp_path)))
    other.read_bytes(3, 500_000, 100)
    assert other.read_bytes(3, 0, 700) != local.shard_paths[3].read_bytes()[:700]
    with pytest.raises(ShardError, match=expected):
        ShardReader(remote).read_bytes(3, 0, 100)


def test_an_object_of_another_size_is_refused(local, front, altered, tmp_path):
    altered(2)
    remote = Dataset.open(URL, roomy(tmp_path))
    with pytest.raises(ShardError, match=r"shard-000002\.tar: \d+ bytes, the manifest says \d+; restore it"):
        ShardReader(remote).read_bytes(2, 0, 100)
    stream = EpochStream(remote, "pretrain", ["ECG"], Reading(0, 8, max_corrupt=0.5))
    assert "n02" not in stream.batch(0, len(stream)).record
    assert f"{URL}/shards/shard-000002.tar" in "".join(stream.report.lines())


def test_a_bad_epoch_in_the_store_is_fetched_twice_and_then_corrupt(local, front, altered, tmp_path):
    ecg = int(local.offsets(channel_member("ECG"))[local.first_segment[4]])
    altered(4, ecg + 2 * 6000 + 17)
    remote = Dataset.open(URL, roomy(tmp_path))
    stream = EpochStream(remote, "pretrain", ["ECG"], Reading(0, 8), require_good_quality=False)
    batch = stream.batch(0, len(stream))
    assert stream.report.skipped == 1 and "fail their checksum" in stream.report.last_fault
    assert len(set(zip(batch.record, batch.first_epoch.tolist(), strict=True))) == len(stream) - 1
    bad = [given for given in front.given[f"{PREFIX}/shards/shard-000004.tar"] if given[0] <= ecg + 12_017 < given[1]]
    assert len(bad) == 2 and bad[1][1] - bad[1][0] <= 6000 + 2 * BLOCK
    front.forget()
    stream.batch(len(stream), len(stream))  # met again, it is not asked for again
    assert front.shard_bytes() == 0 and stream.report.skipped == 2


def spoil(cache: BlockCache, shard: int, place: int) -> None:
    """Change a byte of a block that is in the cache."""
    (path,) = cache.folder.rglob(f"shard-{shard:06d}.tar.blocks")
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 0x55]))


def test_what_has_gone_bad_in_the_cache_is_fetched_again(local, front, tmp_path):
    cache = roomy(tmp_path)
    first = EpochStream(Dataset.open(URL, cache), "pretrain", ["ECG"], Reading(0, 8))
    first.batch(0, len(first))
    row = int(local.first_segment[5])
    checksums_before = 4 * 60 * int(local.channel_row[5, CHANNELS.index("ECG")])
    for member, place in ((channel_member("ECG"), 3), (QUALITY_MEMBER, 3), (CRC_MEMBER, 3 + checksums_before)):
        spoil(cache, 5, int(local.offsets(member)[row]) + place)
    front.forget()
    stream, expected = (EpochStream(one, "pretrain", ["ECG"], Reading(0, 8)) for one in (Dataset.open(URL, cache), local))
    assert torch.equal(stream.batch(0, len(stream)).signals, expected.batch(0, len(stream)).signals)
    assert stream.report.skipped == 0 and 0 < front.shard_bytes() < 20 * BLOCK


def test_labels_that_have_gone_bad_in_the_cache_are_fetched_again(local, front, tmp_path):
    cache, record = roomy(tmp_path), local.index_of("n05")
    expected = RecordLabels(local, ShardReader(local), ("stage",)).of(record)["stage"]
    remote = Dataset.open(URL, cache)
    RecordLabels(remote, ShardReader(remote), ("stage",)).of(record)
    spoil(cache, 5, int(local.offsets(label_member("stage"))[local.first_segment[record]]))
    found = RecordLabels(remote, ShardReader(remote), ("stage",)).of(record)["stage"]
    assert np.array_equal(found, expected)


def test_a_missing_object_counts_as_missing_for_a_while(front, tmp_path):
    remote = Dataset.open(URL, roomy(tmp_path))
    front.missing = "shard-000006.tar"
    with pytest.raises(ShardError, match=rf"{URL}/shards/shard-000006\.tar: missing"):
        ShardReader(remote).read_bytes(6, 0, 100)
    front.missing = ""
    with pytest.raises(ShardError, match="missing"):  # not asked for at every item
        ShardReader(remote).read_bytes(6, 0, 100)
    assert len(ShardReader(Dataset.open(URL, roomy(tmp_path))).read_bytes(6, 0, 100)) == 100


def test_a_cache_that_takes_less_than_one_request_says_so(local, front, tmp_path):
    remote = Dataset.open(URL, BlockCache(tmp_path / "cache", 1000))
    with pytest.raises(ShardError, match="SLEEPFM_CACHE_GIB"):
        ShardReader(remote).read_bytes(0, 0, 100)


def test_requests_are_large_and_never_for_what_is_there():
    wanted, absent = np.zeros((2, 10_000), np.bool_)
    size = 10_000 * BLOCK - 100
    absent[:] = True
    wanted[[5, 7, 9]] = wanted[20:23] = wanted[9000:] = True
    begin, end = requests(wanted, absent, size)
    # Gaps of at most two blocks are asked for too; the end is the object's.
    assert list(zip(begin, end, strict=True)) == [(5 * BLOCK, 10 * BLOCK), (20 * BLOCK, 23 * BLOCK), (9000 * BLOCK, size)]
    absent[8] = False
    assert requests(wanted, absent, size)[1][0] == 8 * BLOCK
    begin, end = requests(np.ones(10_000, np.bool_), np.ones(10_000, np.bool_), size)
    assert (end - begin == REQUEST_BYTES).all() and (end - begin).sum() == GROUP_BYTES
    assert len(requests(wanted, np.zeros(10_000, np.bool_), size)[0]) == 0


def test_a_manifest_that_does_not_belong_is_refused(local, memory_url, tmp_path):
    files = fsspec.filesystem("memory")
    other = make_dataset(tmp_path / "other", [make_night("x", 20, ("ECG",))], overrides=SPLIT)
    files.put(str(other.path / "manifest" / "records.parquet"), "/cohort/manifest/records.parquet")
    with pytest.raises(DatasetError, match=r"not the one that dataset\.json describes"):
        Dataset.open(memory_url, roomy(tmp_path))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_cannot_be_opened_is_an_error_with_its_url(tmp_path):
    with pytest.raises(DatasetError, match=r"memory://nowhere: no dataset\.json"):
        Dataset.open("memory://nowhere", roomy(tmp_path))
    with pytest.raises(ConfigError, match="nosuchscheme"):
        Dataset.open("nosuchscheme://bucket", roomy(tmp_path))
