"""Streams: every item once a pass, a pure function of the position, and what is read is what was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_nights import make_dataset, make_night

from sleepfm.constants import CHANNELS, EPOCH_SAMPLES
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CHANNEL_SCALE, channel_member
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.data.windows import window_starts
from sleepfm.errors import DatasetError, ShardError
from sleepfm.signals.quality import Quality

ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=6"]
LENGTHS = {"a": 13, "b": 6, "c": 25, "d": 7, "e": 12, "f": 3, "g": 30}
CHANNELS_OF = {
    "a": ("EEG_C3", "EEG_C4", "ECG"),
    "b": ("EEG_C4",),
    "c": ("EEG_C3", "EEG_C4", "EOG_L", "SPO2"),
    "d": ("ECG", "SPO2"),
    "e": ("EEG_C3", "EEG_C4"),
    "f": ("EEG_C3",),
    "g": ("EEG_C4", "ECG"),
}


def nights():
    return [make_night(name, LENGTHS[name], CHANNELS_OF[name]) for name in LENGTHS]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("stream") / "out", nights(), overrides=ALL_PRETRAIN)


def signal(record: str, channel: str) -> np.ndarray:
    """What was written, [E, 3000]."""
    return make_night(record, LENGTHS[record], CHANNELS_OF[record]).channels[channel].reshape(-1, EPOCH_SAMPLES)


def usable(record: str, channel: str) -> np.ndarray:
    return make_night(record, LENGTHS[record], CHANNELS_OF[record]).quality[channel] == 0


def test_a_pass_gives_every_good_epoch_of_every_channel_once(made):
    stream = EpochStream(made, "pretrain", ["EEG_C3", "EEG_C4"], Reading(3, 2))
    expected = {
        (record, int(epoch), signal(record, channel)[epoch].tobytes()[:64])
        for record, channels in CHANNELS_OF.items()
        for channel in channels
        if channel.startswith("EEG")
        for epoch in np.flatnonzero(usable(record, channel))
    }
    assert len(stream) == len(expected)
    batch = stream.batch(0, len(stream))
    originals = {}
    for record, epoch, _ in expected:
        for channel in CHANNELS_OF[record]:
            if channel.startswith("EEG"):
                originals[record, epoch, channel] = signal(record, channel)[epoch]
    seen = set()
    for row in range(len(stream)):
        key = batch.record[row], int(batch.first_epoch[row])
        near = [
            channel
            for channel in ("EEG_C3", "EEG_C4")
            if (*key, channel) in originals
            and np.abs(originals[*key, channel] - batch.signals[row].numpy()).max() <= 0.51 * CHANNEL_SCALE[channel]
        ]
        assert len(near) == 1
        assert (*key, near[0]) not in seen
        seen.add((*key, near[0]))
    assert len(seen) == len(expected)


def test_quality_is_optional(made):
    stream = EpochStream(made, "pretrain", ["ECG"], Reading(0), require_good_quality=False)
    assert len(stream) == LENGTHS["a"] + LENGTHS["d"] + LENGTHS["g"]


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 400), count=st.integers(1, 90), cut=st.integers(0, 90), seed=st.integers(0, 3))
def test_batches_depend_on_the_position_alone(made, start, count, cut, seed):
    def stream():
        return EpochStream(made, "pretrain", ["EEG_C3", "EEG_C4"], Reading(seed, 2))

    whole = stream().batch(start, count)
    cut = min(cut, count - 1)
    parts = stream()
    last = parts.batch(start + cut, count - cut)
    assert torch.equal(whole.signals[cut:], last.signals)
    assert whole.record[cut:] == last.record
    assert torch.equal(whole.item, torch.arange(start, start + count))
    if cut:
        assert torch.equal(whole.signals[:cut], parts.batch(start, cut).signals)


def test_passes_and_seeds_have_different_orders(made):
    stream = EpochStream(made, "pretrain", ["EEG_C4"], Reading(0))
    size = len(stream)
    first, second = stream.batch(0, size), stream.batch(size, size)
    other = EpochStream(made, "pretrain", ["EEG_C4"], Reading(1)).batch(0, size)

    def order(batch):
        return list(zip(batch.record, batch.first_epoch.tolist(), strict=True))

    assert sorted(order(first)) == sorted(order(second)) == sorted(order(other))
    assert order(first) != order(second)
    assert order(first) != order(other)


def test_a_window_of_shards_is_left_before_the_next_is_touched(made):
    stream = EpochStream(made, "pretrain", ["EEG_C4"], Reading(5, 1))
    batch = stream.batch(0, len(stream))
    shards = [int(made.shard_of[made.index_of(record)]) for record in batch.record]
    changes = [shard for shard, before in zip(shards, [-1, *shards], strict=False) if shard != before]
    assert len(changes) == len(set(changes))


@pytest.mark.parametrize("length,stride", [(1, None), (4, None), (4, 2), (20, 10), (40, None)])
def test_sequences_hold_the_epochs_they_claim(made, length, stride):
    wanted = ["EEG_C3", "ECG", "SPO2"]
    stream = SequenceStream(made, "pretrain", wanted, length, stride, Reading(1))
    batch = stream.batch(0, len(stream))
    assert batch.signals.shape == (len(stream), length, 3, EPOCH_SAMPLES)
    covered: dict[str, set[int]] = {}
    for row, record in enumerate(batch.record):
        first = int(batch.first_epoch[row])
        count = min(length, LENGTHS[record] - first)
        night = make_night(record, LENGTHS[record], CHANNELS_OF[record])
        covered.setdefault(record, set()).update(range(first, first + count))
        assert batch.valid[row].tolist() == [n < count for n in range(length)]
        for column, channel in enumerate(wanted):
            there = np.zeros(length, bool)
            if channel in CHANNELS_OF[record]:
                there[:count] = usable(record, channel)[first : first + count]
            assert batch.present[row, :, column].tolist() == there.tolist()
            found = batch.signals[row, :, column].numpy()
            assert (found[~there] == 0).all()
            if there.any():
                original = signal(record, channel)[first : first + count]
                assert np.abs(found[:count] - original)[there[:count]].max() <= 0.51 * CHANNEL_SCALE[channel]
        seen = batch.present[row, :count].any(dim=1).numpy()
        assert batch.labels["stage"][row, :count].tolist() == np.where(seen, night.stage[first : first + count], -1).tolist()
        hypopnea = np.where(seen & (night.stage >= 0)[first : first + count], night.labels["hypopnea"][first : first + count], -1)
        assert batch.labels["hypopnea"][row].tolist() == [*hypopnea.tolist(), *[-1] * (length - count)]
        assert seen.any()
    for record, channels in CHANNELS_OF.items():
        live = {epoch for name in wanted if name in channels for epoch in np.flatnonzero(usable(record, name)).tolist()}
        assert live <= covered.get(record, set())


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 50))
def test_windows_cover_a_recording_and_stay_in_it(epochs, length, stride):
    starts = window_starts(epochs, length, min(stride, length))
    assert (np.diff(starts) > 0).all()
    assert starts[0] == 0
    assert starts[-1] == max(epochs - length, 0)
    assert (np.diff(starts) <= length).all()
    assert len(starts) == 1 + -(-max(epochs - length, 0) // min(stride, length))


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])
def test_a_label_fraction_keeps_a_stratified_share_of_every_recording(made, fraction):
    full = SequenceStream(made, "pretrain", ["EEG_C4"], 1, labelled_only=True)
    part = SequenceStream(made, "pretrain", ["EEG_C4"], 1, label_fraction=fraction, labelled_only=True)

    def drawn(stream):
        batch = stream.batch(0, len(stream))
        assert (batch.labels["stage"] >= 0).all()
        return {
            (record, epoch): stage
            for record, epoch, stage in zip(
                batch.record, batch.first_epoch.tolist(), batch.labels["stage"][:, 0].tolist(), strict=True
            )
        }

    everything, subset = drawn(full), drawn(part)
    assert subset.items() <= everything.items()
    for record in {record for record, _ in everything}:
        for stage in range(5):
            all_of = [key for key, value in everything.items() if key[0] == record and value == stage]
            kept = [key for key, value in subset.items() if key[0] == record and value == stage]
            scored = int((make_night(record, LENGTHS[record], CHANNELS_OF[record]).stage == stage).sum())
            share = max(1, round(fraction * scored)) if scored else 0  # some of which fall on unusable epochs
            assert share - (scored - len(all_of)) <= len(kept) <= share


def test_a_smaller_fraction_is_part_of_a_larger_one_and_the_seed_decides(made):
    def labels(fraction, seed):
        stream = SequenceStream(made, "pretrain", ["EEG_C4"], 5, label_fraction=fraction, label_seed=seed)
        return stream.batch(0, len(stream)).labels["stage"] >= 0

    small, large = labels(0.05, 0), labels(0.5, 0)
    assert (large | ~small).all()
    assert small.sum() < large.sum()
    assert not torch.equal(large, labels(0.5, 1))


def test_nothing_is_learnt_from_windows_without_a_channel(tmp_path):
    """Dead windows give their place to live ones of the same recording, and a recording that is all dead gives none."""
    dead, part = make_night("dead", 8, ("EEG_C4", "ECG")), make_night("part", 12, ("EEG_C4", "ECG"))
    for name in ("EEG_C4", "ECG"):
        dead.quality[name][:] = Quality.DISCONNECTED
        part.quality[name][:] = Quality.MAINS  # bad, but there
        part.quality[name][4:9] = Quality.GAP
    part.quality["ECG"][5] = 0
    made = make_dataset(tmp_path / "out", [dead, part], overrides=ALL_PRETRAIN)
    stream = SequenceStream(made, "pretrain", ["EEG_C4", "ECG"], labels=())
    batch = stream.batch(0, len(stream))
    assert len(stream) == 12 and set(batch.record) == {"part"}
    counts = np.bincount(batch.first_epoch.numpy(), minlength=12)
    assert (counts[[0, 1, 2, 3, 5, 9, 10, 11]] >= 1).all() and (counts[[4, 6, 7, 8]] == 0).all()
    assert batch.present.any(dim=2).all()
    five = int(np.flatnonzero(batch.first_epoch.numpy() == 5)[0])
    assert batch.present[five, 0].tolist() == [False, True]
    assert not batch.signals[five, 0, 0].any() and batch.signals[five, 0, 1].any()
    longer = SequenceStream(made, "pretrain", ["EEG_C4"], 4, labelled_only=True)
    batch = longer.batch(0, len(longer))
    assert (batch.labels["stage"][~batch.present.any(dim=2)] == -1).all()
    assert (batch.labels["stage"] >= 0).any(dim=1).all()


def test_windows_without_a_label_are_not_items(tmp_path):
    dataset = make_dataset(
        tmp_path / "out",
        [make_night("scored", 20), make_night("unscored", 20, scored=False)],
        overrides=ALL_PRETRAIN,
    )
    stream = SequenceStream(dataset, "pretrain", ["EEG_C4"], 4, labelled_only=True)
    batch = stream.batch(0, len(stream))
    assert set(batch.record) == {"scored"}
    assert (batch.labels["stage"] >= 0).any(dim=1).all()


def test_prefetching_changes_nothing(made):
    stream = EpochStream(made, "pretrain", ["EEG_C4"], Reading(0))
    plan = [(start, 7) for start in range(0, 70, 14)]
    with Prefetcher(EpochStream(made, "pretrain", ["EEG_C4"], Reading(0)), plan) as ahead:
        for (start, count), batch in zip(plan, ahead, strict=True):
            assert torch.equal(batch.signals, stream.batch(start, count).signals)


def test_prefetching_stops_early_and_passes_errors_on(made, tmp_path):
    stream = EpochStream(made, "pretrain", ["EEG_C4"], Reading(0))
    with Prefetcher(stream, ((n, 4) for n in range(10**9))) as ahead:
        assert len(next(ahead)) == 4
    broken = make_dataset(tmp_path / "out", nights(), overrides=ALL_PRETRAIN)
    reading = EpochStream(broken, "pretrain", ["EEG_C4"], Reading(0), require_good_quality=False)
    for path in broken.shard_paths:
        path.unlink()
    with Prefetcher(reading, [(0, 4)]) as ahead, pytest.raises(ShardError):
        next(ahead)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_corrupt_epoch_is_replaced_counted_and_reported(tmp_path, caplog):
    dataset = make_dataset(tmp_path / "out", nights(), overrides=ALL_PRETRAIN)
    clean = EpochStream(dataset, "pretrain", ["EEG_C4"], Reading(0))
    size = len(clean)
    before = clean.batch(0, size)
    row = before.record.index("g")
    epoch = int(before.first_epoch[row])
    record = dataset.index_of("g")
    offset = dataset.offsets(channel_member("EEG_C4"))[dataset.first_segment[record] + epoch // 6] + epoch % 6 * 6000
    flip(dataset.shard_paths[dataset.shard_of[record]], int(offset) + 1234)
    stream = EpochStream(dataset, "pretrain", ["EEG_C4"], Reading(0))
    after = stream.batch(0, size)
    assert stream.report.skipped == 1
    assert "checksum" in caplog.text
    same = [n for n in range(size) if n != row]
    assert torch.equal(after.signals[same], before.signals[same])
    assert not torch.equal(after.signals[row], before.signals[row])
    assert (after.record[row], int(after.first_epoch[row])) != ("g", epoch)
    again = EpochStream(dataset, "pretrain", ["EEG_C4"], Reading(0)).batch(row, 1)
    assert torch.equal(again.signals[0], after.signals[row])


def test_more_than_a_share_of_corrupt_items_stops(tmp_path):
    dataset = make_dataset(tmp_path / "out", nights(), overrides=ALL_PRETRAIN)
    record = dataset.index_of("g")
    start = dataset.offsets(channel_member("EEG_C4"))[dataset.first_segment[record]]
    for epoch in range(6):
        flip(dataset.shard_paths[dataset.shard_of[record]], int(start) + epoch * 6000)
    stream = EpochStream(dataset, "pretrain", ["EEG_C4"], Reading(0), require_good_quality=False)
    with pytest.raises(ShardError, match="corrupt"):
        for step in range(4):
            stream.batch(step * len(stream), len(stream))


def test_a_shard_cut_short_while_it_is_in_use_is_no_crash(tmp_path):
    dataset = make_dataset(tmp_path / "out", nights(), overrides=ALL_PRETRAIN)
    stream = EpochStream(dataset, "pretrain", ["EEG_C4"], Reading(0), require_good_quality=False)
    stream.batch(0, len(stream))
    for path in dataset.shard_paths:
        os.truncate(path, 5000)
    with pytest.raises(ShardError, match="corrupt"):
        stream.batch(0, len(stream))


def test_what_is_not_there_is_refused_by_name(made):
    with pytest.raises(DatasetError, match="'val' is empty"):
        EpochStream(made, "val", ["EEG_C4"], Reading(0))
    with pytest.raises(DatasetError, match="THORAX"):
        EpochStream(made, "pretrain", ["THORAX"], Reading(0))
    with pytest.raises(DatasetError, match=r"unknown channels \['C4'\]"):
        EpochStream(made, "pretrain", ["C4"], Reading(0))
    with pytest.raises(DatasetError, match="unknown split"):
        SequenceStream(made, "train", ["ECG"])
    with pytest.raises(DatasetError, match="label fraction"):
        SequenceStream(made, "pretrain", ["ECG"], label_fraction=0)
    assert set(CHANNELS) >= {"THORAX"}
