"""The order of a stream: every item once a pass, the same for any ranks, workers and restarts, near in shards, well mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_nights import make_dataset, make_night

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.order import PassOrder
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import EpochStream, Reading, SequenceStream

ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=6"]
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)
ORDERS = st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7))


def sequence(order: PassOrder, start: int, count: int) -> list[tuple[int, tuple[int, ...], int]]:
    """(pass, shards of the window, item of the window after shuffling) of every position."""
    found = []
    for window, chosen, asked in order.pieces(start, count):
        assert asked.stop - asked.start == chosen.stop - chosen.start > 0
        items = order.shuffle(window)[chosen]
        found += [(window.pass_number, tuple(window.shards.tolist()), int(item)) for item in items]
    return found


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, settings_=ORDERS, number=st.integers(0, 3))
def test_a_pass_holds_every_item_of_every_shard_once(sizes, settings_, number):
    seed, span, partitions, block = settings_
    order = PassOrder(np.array(sizes), seed, span, partitions, block)
    found = sequence(order, number * sum(sizes), sum(sizes))
    assert {entry[0] for entry in found} == {number}
    assert len(set(found)) == len(found) == sum(sizes)
    windows = {entry[1] for entry in found}
    assert sorted(shard for window in windows for shard in window) == list(range(len(sizes)))
    for window in windows:
        items = sorted(entry[2] for entry in found if entry[1] == window)
        assert items == list(range(sum(sizes[shard] for shard in window)))


def test_the_order_at_a_seed_is_the_one_that_released_models_were_trained_in():
    found = sequence(PassOrder(np.array([4, 2, 3, 2]), 7, 2, 1, 1), 0, 22)
    windows = [(0, (3, 2))] * 5 + [(0, (1, 0))] * 6 + [(1, (1, 3))] * 4 + [(1, (2, 0))] * 7
    assert [entry[:2] for entry in found] == windows
    assert [entry[2] for entry in found] == [3, 0, 1, 4, 2, 1, 4, 2, 0, 3, 5, 1, 3, 0, 2, 3, 4, 6, 1, 5, 2, 0]


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, settings_=ORDERS, start=st.integers(0, 500), counts=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_any_cut_of_the_positions_gives_the_same_order(sizes, settings_, start, counts):
    seed, span, partitions, block = settings_
    whole = sequence(PassOrder(np.array(sizes), seed, span, partitions, block), start, sum(counts))
    parts = PassOrder(np.array(sizes), seed, span, partitions, block)
    begins = start + np.cumsum([0, *counts[:-1]])
    backwards = {begin: sequence(parts, begin, count) for begin, count in reversed([*zip(begins.tolist(), counts, strict=True)])}
    assert [entry for begin in sorted(backwards) for entry in backwards[begin]] == whole


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(5, 40), min_size=8, max_size=20), partitions=st.integers(2, 4), block=st.integers(1, 5))
def test_a_partition_reads_shards_of_its_own(sizes, partitions, block):
    order = PassOrder(np.array(sizes), 0, 1, partitions, block)
    size = sum(sizes)
    shards_of_partition: dict[int, list[int]] = {partition: [] for partition in range(partitions)}
    for position in range(size):
        (_, (shard,), _) = sequence(order, position, 1)[0]
        shards_of_partition[position // block % partitions].append(shard)
    for shards in shards_of_partition.values():
        changes = [shard for shard, before in zip(shards, [-1, *shards], strict=False) if shard != before]
        assert len(changes) == len(set(changes))  # one after the other, none twice
    shared = sum(len(set(shards)) for shards in shards_of_partition.values()) - len(sizes)
    assert shared <= partitions - 1  # only where two partitions meet


def test_what_a_lane_comes_to_next_is_what_it_is_told_to_read_ahead():
    for partitions, block in ((1, 1), (3, 4)):
        order = PassOrder(np.full(40, 50), 7, 4, partitions, block)
        next_of: dict[int, tuple[int, int]] = {}
        missed = 0
        for position in range(2 * order.total):
            partition = position // block % partitions
            window = next(iter(order.pieces(position, 1)))[0]
            key = (window.pass_number, window.index)
            if partition in next_of and key != next_of[partition][0]:
                missed += key != next_of[partition][1]
            ahead = order.ahead(position)
            next_of[partition] = (key, (ahead.pass_number, ahead.index))
        # Where a partition ends inside a window its next pass begins elsewhere.
        assert missed <= (0 if partitions == 1 else 2 * partitions)


def keys(batch: Batch) -> list[tuple[str, int, bytes]]:
    return [
        (record, first, signals.numpy().tobytes()[:48])
        for record, first, signals in zip(batch.record, batch.first_epoch.tolist(), batch.signals, strict=True)
    ]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Dataset:
    """Shards of 3 to 90 epochs a channel."""
    lengths = [90, 3, 5, 40, 4, 3, 61, 7]
    nights = [make_night(f"n{index}", length, ("EEG_C4", "ECG")) for index, length in enumerate(lengths)]
    return make_dataset(tmp_path_factory.mktemp("order") / "out", nights, per_shard=1, overrides=ALL_PRETRAIN)


def epochs(dataset: Dataset, partitions: int = 1, block: int = 1) -> EpochStream:
    return EpochStream(dataset, "pretrain", ["EEG_C4", "ECG"], Reading(2, 3, partitions, block))


def sequences(dataset: Dataset, partitions: int = 1, block: int = 1) -> SequenceStream:
    return SequenceStream(dataset, "pretrain", ["EEG_C4", "ECG"], 4, 2, Reading(2, 3, partitions, block))


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from([epochs, sequences]),
    partitions=st.integers(1, 3),
    ranks=st.sampled_from([1, 2, 3, 4, 6]),
    workers=st.integers(1, 3),
    start=st.integers(0, 400),
)
def test_the_union_over_ranks_and_workers_is_the_whole_order(uneven, make, partitions, ranks, workers, start):
    reference = make(uneven, partitions, 4)
    found: dict[int, tuple[str, int, bytes]] = {}
    for worker in range(workers):  # each with a stream of its own, which sees only its positions
        stream = make(uneven, partitions, 4)
        for rank in range(ranks):
            for step in range(worker, 4, workers):
                part = stream.batch(start + step * 12 + rank * (12 // ranks), 12 // ranks)
                found.update(zip(part.item.tolist(), keys(part), strict=True))
    whole = reference.batch(start, 48)
    assert [found[position] for position in range(start, start + 48)] == keys(whole)


@settings(max_examples=10, deadline=None)
@given(make=st.sampled_from([epochs, sequences]), partitions=st.integers(1, 3), data=st.data())
def test_a_run_moved_between_world_sizes_repeats_and_skips_nothing(uneven, make, partitions, data):
    """A pass in steps of 12 items, resumed several times on other numbers of ranks."""
    size = len(make(uneven))
    seen: list[tuple[str, int, bytes]] = []
    step, steps = 0, size // 12
    while step < steps:
        until = data.draw(st.integers(step + 1, steps))
        ranks = data.draw(st.sampled_from([1, 2, 3, 4]))
        by_rank = [make(uneven, partitions, 4) for _ in range(ranks)]  # fresh processes
        for number in range(step, until):
            for rank, stream in enumerate(by_rank):
                seen += keys(stream.batch(number * 12 + rank * (12 // ranks), 12 // ranks))
        step = until
    seen += keys(make(uneven, partitions, 4).batch(steps * 12, size - steps * 12))
    assert len(set(seen)) == len(seen) == size
    assert set(seen) == set(keys(make(uneven).batch(0, size)))


def test_ranks_get_equal_batches_from_shards_of_very_different_sizes(uneven):
    """3 ranks, 8 shards of 3 to 90 epochs: no rank runs out before another, also over the ends of passes."""
    size = len(epochs(uneven))
    steps = 2 * size // 9
    counts = []
    for rank in range(3):
        plan = ((step * 9 + rank * 3, 3) for step in range(steps))
        with Prefetcher(epochs(uneven, 3, 3), plan) as batches:
            counts.append([len(batch) for batch in batches])
    assert counts == [[3] * steps] * 3


def test_epochs_are_mixed_over_the_window_and_between_passes(tmp_path):
    """The measure: rank correlation of positions and written order, and neighbours that stay neighbours."""
    nights = [make_night(f"n{index:02d}", 60, ("ECG",)) for index in range(16)]
    dataset = make_dataset(tmp_path / "out", nights, per_shard=2, overrides=ALL_PRETRAIN)
    stream = EpochStream(dataset, "pretrain", ["ECG"], Reading(0, 8), require_good_quality=False)
    size = len(stream)

    def written(start: int) -> np.ndarray:
        batch = stream.batch(start, size)
        return np.array([dataset.index_of(record) for record in batch.record]) * 60 + batch.first_epoch.numpy()

    first, second = written(0), written(size)
    bound = 4 / np.sqrt(size)  # four standard deviations of a random order's
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < bound
    assert abs(np.corrcoef(first, np.argsort(np.argsort(second)))[0, 1]) < bound
    assert (np.abs(np.diff(first)) == 1).mean() < 0.02
    # A batch of 64 of 16 recordings holds nearly as many different ones as random draws would.
    different = [len(set((first[begin : begin + 64] // 60).tolist())) for begin in range(0, size - 63, 64)]
    assert np.mean(different) > 0.95 * 16 * (1 - (15 / 16) ** 64)


def test_shards_are_read_one_window_at_a_time_and_memory_holds_two(tmp_path):
    nights = [make_night(f"n{index:02d}", 12, ("ECG",)) for index in range(24)]
    dataset = make_dataset(tmp_path / "out", nights, per_shard=1, overrides=ALL_PRETRAIN)
    stream = EpochStream(dataset, "pretrain", ["ECG"], Reading(0, 4), require_good_quality=False)
    shards = [dataset.index_of(record) for record in stream.batch(0, len(stream)).record]
    for begin in range(0, len(shards), 48):
        assert len(set(shards[begin : begin + 48])) == 4
    assert len(stream._windows) <= 2


def test_the_position_is_the_whole_state(uneven):
    """A stream that has read a lot and one that has read nothing give the same at any position."""
    worn = epochs(uneven)
    for start in (700, 3, 250):
        worn.batch(start, 50)
        assert torch.equal(worn.batch(90, 20).signals, epochs(uneven).batch(90, 20).signals)


def test_no_window_of_a_stream_leaves_its_recording(uneven):
    stream = SequenceStream(uneven, "pretrain", ["EEG_C4", "ECG"], 10, 10)
    batch = stream.batch(0, len(stream))
    for row, record in enumerate(batch.record):
        length, first = int(uneven.n_epochs[uneven.index_of(record)]), int(batch.first_epoch[row])
        assert first >= 0 and first + int(batch.valid[row].sum()) <= length
        night = make_night(record, length, ("EEG_C4", "ECG"))
        inside = night.channels["ECG"].reshape(length, -1)[first : first + 10]
        usable = night.quality["ECG"][first : first + 10] == 0
        found = batch.signals[row, : len(inside), 1].numpy()
        assert np.abs(found - inside * usable[:, None]).max() < 1e-3
        assert (batch.signals[row, len(inside) :] == 0).all()


def test_the_folder_is_left_as_it_was(uneven):
    before = {path: path.stat().st_mtime_ns for path in Path(uneven.path).rglob("*")}
    epochs(uneven).batch(0, 200)
    assert before == {path: path.stat().st_mtime_ns for path in Path(uneven.path).rglob("*")}
