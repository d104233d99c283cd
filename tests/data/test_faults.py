"""Corrupt, cut short, missing and slow shards: named, counted, replaced in step, and an end when they are too many."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from made_nights import make_dataset, make_night

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CRC_MEMBER, QUALITY_MEMBER, channel_member, label_member
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.report import ReadReport
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.errors import ShardError
from sleepfm.signals.quality import Quality

ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=10"]
CHANNELS = ("EEG_C4", "ECG")
EPOCHS = 30
BEAR = Reading(3, 4, max_corrupt=0.5)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """12 recordings of 30 epochs in 6 shards."""
    nights = [make_night(f"n{index:02d}", EPOCHS, CHANNELS) for index in range(12)]
    return make_dataset(tmp_path / "out", nights, overrides=ALL_PRETRAIN)


def damage(dataset: Dataset, record: str, member: str, sample: int = 0, byte: int = 0) -> Path:
    """Flip a bit of a byte of a member; returns the shard."""
    row = dataset.index_of(record)
    shard = dataset.shard_paths[dataset.shard_of[row]]
    at = int(dataset.offsets(member)[dataset.first_segment[row] + sample]) + byte
    with shard.open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 4]))
    return shard


def shard_of(dataset: Dataset, record: str) -> Path:
    return dataset.shard_paths[dataset.shard_of[dataset.index_of(record)]]


def pairs(batch: Batch) -> list[tuple[str, int]]:
    return list(zip(batch.record, batch.first_epoch.tolist(), strict=True))


def epochs(dataset: Dataset, reading: Reading = BEAR, good: bool = False) -> EpochStream:
    return EpochStream(dataset, "pretrain", CHANNELS, reading, require_good_quality=good)


def by_rank(dataset: Dataset, make, ranks: int, steps: int, micro: int) -> list[tuple[str, int]]:
    """All items of some steps, read by ``ranks`` streams of their own, in the order of positions."""
    streams = [make(dataset) for _ in range(ranks)]
    found = []
    for step in range(steps):
        for rank, stream in enumerate(streams):
            batch = stream.batch((step * ranks + rank) * micro, micro)
            assert len(batch) == micro
            found += pairs(batch)
    return found


def test_a_flipped_byte_is_reported_with_shard_sample_and_record(dataset, caplog):
    shard = damage(dataset, "n05", channel_member("ECG"), sample=1, byte=3 * 6000 + 17)
    stream = epochs(dataset)
    batch = stream.batch(0, len(stream))
    assert stream.report.skipped == 1
    (line,) = stream.report.lines()
    for word in (str(shard), "sample n05_0001", "ECG", "epoch 14 of n05", "checksum"):
        assert word in line
        assert word in caplog.text
    clean = epochs(dataset)
    assert len(batch) == len(clean)


@pytest.mark.parametrize("make", [epochs, lambda d: SequenceStream(d, "pretrain", CHANNELS, 3, reading=BEAR)])
@pytest.mark.parametrize("fault", ["flip", "cut", "missing", "cut before opening"])
def test_substitutes_are_the_same_for_any_ranks_and_after_resuming(dataset, fault, make):
    shard = shard_of(dataset, "n04")
    if fault == "flip":
        for sample in range(3):
            damage(dataset, "n04", channel_member("EEG_C4"), sample, 2000)
    elif fault == "missing":
        shard.unlink()
    else:
        whole = make(dataset)  # a stream that has it open already
        whole.batch(0, len(whole))
        os.truncate(shard, 200_000)
        if fault == "cut":
            cut = whole.batch(len(whole), len(whole))
            assert whole.report.skipped > 0
            assert shard.name in whole.report.lines()[0]
            assert set(cut.record) <= set(dataset.names)
    one = make(dataset)
    size = len(one) // 12 * 12
    alone = pairs(one.batch(0, size))
    assert one.report.skipped > 0
    if fault != "flip":  # both recordings of the shard are out of reach, other than the epochs before the cut
        assert "n04" not in {record for record, _ in alone} or fault.startswith("cut")
    assert by_rank(dataset, make, 3, size // 12, 4) == alone
    assert by_rank(dataset, make, 2, size // 12, 6) == alone
    assert pairs(make(dataset).batch(size // 2, size // 2)) == alone[size // 2 :]  # resumed
    assert pairs(one.batch(0, size)) == alone  # and read again


def test_a_substitute_has_signals_and_names_of_the_same_item(dataset):
    """Also when it comes from another channel, and when its window is read again."""
    for record in ("n00", "n01", "n02"):
        damage(dataset, record, channel_member("ECG"), 0, 100)
    stream = epochs(dataset)
    originals = {name: make_night(name, EPOCHS, CHANNELS).channels for name in dataset.names}
    for _ in range(2):
        batch = stream.batch(0, len(stream))
        for record, first, signal in zip(batch.record, batch.first_epoch.tolist(), batch.signals.numpy(), strict=True):
            near = [np.abs(originals[record][name][first * 3000 : (first + 1) * 3000] - signal).max() for name in CHANNELS]
            assert min(near) < 1e-3


def test_a_missing_shard_among_many_is_borne_and_many_missing_are_not(tmp_path):
    nights = [make_night(f"n{index:02d}", 10, ("ECG",)) for index in range(60)]
    dataset = make_dataset(tmp_path / "out", nights, per_shard=1, overrides=ALL_PRETRAIN)
    reading = Reading(0, 8, max_corrupt=0.05)  # of 600: one shard is 1.7 %
    dataset.shard_paths[17].unlink()
    stream = epochs(dataset, reading, good=True)
    for start in range(0, 2 * len(stream), 20):
        stream.batch(start, 20)
    (line,) = stream.report.lines()
    assert str(dataset.shard_paths[17]) in line
    for shard in range(20, 40):
        dataset.shard_paths[shard].unlink()
    stream = epochs(dataset, reading, good=True)
    with pytest.raises(ShardError, match=r"limit 5 %.*shard-0000"):
        for start in range(0, len(stream), 20):
            stream.batch(start, 20)


def test_nothing_left_to_read_is_an_error_and_not_a_loop(dataset):
    for path in dataset.shard_paths:
        path.unlink()
    with pytest.raises(ShardError, match="no other item of their shards is intact"):
        epochs(dataset, Reading(max_corrupt=1.0)).batch(0, 4)


def test_a_wrong_checksum_member_counts_as_corrupt(dataset):
    damage(dataset, "n07", CRC_MEMBER, 2, 4)
    stream = epochs(dataset)
    stream.batch(0, len(stream))
    assert stream.report.skipped == 1
    assert "epoch 22 of n07" in stream.report.lines()[0]


def test_changed_quality_never_lets_a_bad_epoch_pass_for_a_good_one(dataset):
    assert dataset.description["quality_mask"] & Quality.DISCONNECTED.value == 4  # the bit that is flipped
    damage(dataset, "n03", QUALITY_MEMBER, 0, 5)  # of EEG_C4, the first channel: one epoch becomes flat, or good
    stream = epochs(dataset, good=True)
    batch = stream.batch(0, len(stream))
    assert len(batch) == len(stream)
    assert "quality of EEG_C4" in stream.report.lines()[0]
    # Which epochs are meant is not known, so none of that channel is taken.
    assert stream.report.skipped >= dataset.usable[dataset.index_of("n03"), 1]


@pytest.mark.parametrize("member", ["stage", "hypopnea"])
def test_changed_labels_are_never_used(dataset, member):
    damage(dataset, "n02", label_member(member), 1, 3)
    with pytest.raises(ShardError, match=rf"labels '{member}' of n02"):
        RecordLabels(dataset, ShardReader(dataset), (member,)).of(dataset.index_of("n02"))
    stream = SequenceStream(dataset, "pretrain", CHANNELS, 3, reading=BEAR, labels=(member,))
    assert "n02" not in stream.batch(0, len(stream)).record
    assert f"labels '{member}' of n02" in stream.report.lines()[0]
    # Which windows there are must not depend on what this process can read now.
    if member == "stage":
        with pytest.raises(ShardError, match="n02"):
            SequenceStream(dataset, "pretrain", CHANNELS, 3, labelled_only=True)


def test_labels_that_go_missing_during_a_run_are_replaced(dataset):
    stream = SequenceStream(dataset, "pretrain", CHANNELS, 3, reading=BEAR, labels=("stage",), labelled_only=True)
    stream._labels._kept.clear()
    stream._reader.close()
    shard_of(dataset, "n08").unlink()
    batch = stream.batch(0, len(stream))
    assert not {"n08", "n09"} & set(batch.record)
    assert (batch.labels["stage"] >= 0).any(dim=1).all()


def test_a_shard_that_cannot_be_opened_is_named_with_the_reason(dataset):
    reader = ShardReader(dataset)
    shard = shard_of(dataset, "n08")
    shard.unlink()
    with pytest.raises(ShardError, match=rf"{shard.name}: cannot read shard \(No such file.*\); restore it"):
        RecordLabels(dataset, reader, ("stage",)).of(dataset.index_of("n08"))


class SlowReader(ShardReader):
    """A disk that takes its time for one shard."""

    slow_shard, seconds = 2, 0.3

    def _handle(self, shard: int) -> int:
        if shard == self.slow_shard:
            time.sleep(self.seconds)
        return super()._handle(shard)


def test_slow_accesses_are_reported_by_name(dataset, caplog):
    stream = epochs(dataset, Reading(0, 6, slow_seconds=0.2, read_ahead=False))
    stream._reader = SlowReader(dataset, stream.report)
    fast = epochs(dataset, Reading(0, 6)).batch(0, 100)
    assert torch.equal(stream.batch(0, 100).signals, fast.signals)
    # A busy machine may make others slow too.
    assert any(f"{dataset.shard_paths[2]}: 1 slow reads" in line for line in stream.report.lines())
    assert f"slow: a read of {dataset.shard_paths[2]} took" in caplog.text
    figures = stream.report.figures()
    assert figures["data/slow_reads"] >= 1
    assert figures["data/slowest_read"] >= 0.3
    assert figures["data/skipped"] == 0


class HangingReader(ShardReader):
    """A disk that does not answer for one shard until it is told to."""

    answer = threading.Event()

    def _handle(self, shard: int) -> int:
        if shard == 2:
            assert self.answer.wait(60)
        return super()._handle(shard)


def test_a_read_that_hangs_is_named_while_it_is_waited_for(dataset):
    stream = epochs(dataset, Reading(0, 6, slow_seconds=0.1, read_ahead=False))
    reader = stream._reader = HangingReader(dataset, stream.report)
    said = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if "no data for" in said[-1] and str(dataset.shard_paths[2]) in said[-1]:
                reader.answer.set()

    listener = Listener()
    logging.getLogger("sleepfm.data.prefetch").addHandler(listener)
    try:
        with Prefetcher(stream, [(0, 100)]) as batches:
            assert len(next(batches)) == 100
    finally:
        logging.getLogger("sleepfm.data.prefetch").removeHandler(listener)
    assert reader.answer.is_set(), said


def test_a_report_is_safe_between_threads():
    report = ReadReport(slow_seconds=0.0)

    def work(name: str) -> None:
        for number in range(500):
            report.fault(name, f"{name}: {number}")
            report.took(name, 1.0)

    threads = [threading.Thread(target=work, args=(f"shard-{number % 2}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.figures()["data/faults"] == 2000
    assert report.figures()["data/slow_reads"] == 2000
