"""Processes that read the batches of a plan: the batches of a thread, its errors and its figures; no process outlives its use."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from made_nights import make_dataset, make_night
from torch import Tensor

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.report import ReadReport
from sleepfm.data.shared_batch import SharedMemory
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.errors import LostWorkerError, ShardError
from sleepfm.models.noise import noise_for

CHANNELS = ("EEG_C4", "ECG")
ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    nights = [make_night(f"n{index:02d}", 20, CHANNELS if index % 3 else ("ECG",)) for index in range(12)]
    return make_dataset(tmp_path / "out", nights, per_shard=2, overrides=ALL_PRETRAIN)


def sequences(dataset: Dataset, length: int = 3) -> SequenceStream:
    noise = partial(noise_for, shape=(2, 5), seed=7)
    return SequenceStream(dataset, "pretrain", CHANNELS, length, reading=Reading(3, 2), noise=noise)


def epochs(dataset: Dataset, max_corrupt: float) -> EpochStream:
    return EpochStream(dataset, "pretrain", CHANNELS, Reading(0, 8, max_corrupt=max_corrupt), require_good_quality=False)


def readers() -> list[psutil.Process]:
    """The processes that read for this one."""
    return [child for child in psutil.Process().children() if "sleepfm.data.worker" in child.cmdline()]


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert readers() == []


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.apply(found.append)
    return found


def assert_same(found: Batch, expected: Batch) -> None:
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    assert found.record == expected.record and found.labels.keys() == expected.labels.keys()


def figures(report: ReadReport) -> tuple[int, int, dict[str, object], str]:
    return report.items, report.skipped, dict(report.shards), report.last_fault


def test_processes_give_what_a_thread_gives_in_the_order_of_the_plan(dataset: Dataset) -> None:
    # Of growing size, across passes and windows, of a number that the processes do not divide.
    plan = [(start * start, 4 + start) for start in range(11)]
    alone, stream = sequences(dataset), sequences(dataset)
    with Prefetcher(stream, plan, workers=2) as batches:
        kept = list(batches)
    assert len(kept) == len(plan)
    for batch, position in zip(kept, plan, strict=True):
        assert_same(batch, alone.batch(*position))
    assert figures(stream.report) == figures(alone.report)
    assert stream.report.items == sum(count for _, count in plan)


def test_shared_memory_gives_back_every_layout_of_a_tensor() -> None:
    memory = SharedMemory()
    other = SharedMemory(memory.handle)
    values = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32)
    layouts = [
        values.reshape(2, 3, 4, 5).transpose(1, 2),
        values.reshape(2, 60)[:, ::2],
        values[:1].expand(7, 3),
        torch.empty(0, 3),
        torch.tensor(2.5),
    ]
    for signals in layouts:
        flags = torch.tensor([[True], [False]])
        batch = Batch(signals, flags, ~flags, {"stage": torch.tensor([-1, 4])}, torch.arange(2), ["a", "b"], torch.ones(2).long())
        found = other.read(memory.write(batch))
        assert_same(found.clone(), batch.clone())
        assert found.noise is None
        # It is the memory itself.
        memory.write(batch.apply(torch.zeros_like))
        assert not any(tensor.any() for tensor in tensors(found))
    memory.close()


def test_faults_and_their_bound_are_those_of_a_thread(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    """Over all processes: each of them has met fewer than are tolerated when all of them have not."""
    dataset.shard_paths[2].unlink()
    plan = [(start, 6) for start in range(0, 10**6, 6)]

    def read(workers: int) -> tuple[list[Batch], EpochStream, str]:
        stream, found = epochs(dataset, max_corrupt=0.05), []
        with pytest.raises(ShardError) as refused, Prefetcher(stream, plan, workers=workers) as batches:
            for batch in batches:
                found.append(batch)
        return found, stream, str(refused.value)

    expected, thread, message = read(0)
    # More than one process reads before the bound of 20 is met.
    assert len(expected) > 4 and thread.report.skipped == 21 and "limit 5 %" in message
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    found, stream, processes = read(2)
    # They have read on to the end of a batch.
    assert stream.report.skipped >= 21
    assert processes == message.replace("21 of", f"{stream.report.skipped} of")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert stream.report.items == thread.report.items and stream.report.shards.keys() == thread.report.shards.keys()
    # Once, and by this process.
    assert [text for text in map(logging.LogRecord.getMessage, caplog.records) if "no data" not in text] == said
    assert len(said) == 1


def test_a_report_adds_what_another_has_counted_and_logs_what_is_first(caplog: pytest.LogCaptureFixture) -> None:
    there, here = ReadReport(1.0, silent=True), ReadReport(1.0)
    there.items, there.skipped = 5, 1
    there.fault("a.tar", "first")
    there.took("b.tar", 3.0)
    there.took("b.tar", 2.0, "read ahead")
    assert caplog.records == []
    here.add(there.take())
    there.items = 2
    there.fault("a.tar", "second")
    there.took("b.tar", 4.0, "read ahead")
    here.add(there.take())
    here.add(there.take())
    assert (here.items, here.skipped, here.last_fault) == (7, 1, "second")
    assert here.figures() == {"data/skipped": 1, "data/faults": 2, "data/slow_reads": 3, "data/slowest_read": 4.0}
    assert here.shards["b.tar"].slowest_read == "a read ahead of b.tar took 4.0 s"
    said = ["corrupt: first", "slow: a read of b.tar took 3.0 s (more than 1 s is reported)"]
    assert sorted(record.getMessage() for record in caplog.records) == said


def fail(items: Tensor, at: int) -> Tensor:
    if at in items:
        raise ValueError(f"no noise for item {at}")
    return items


def test_an_unforeseen_error_tells_where_it_was_raised(dataset: Dataset) -> None:
    stream = EpochStream(dataset, "pretrain", CHANNELS, noise=partial(fail, at=17))
    with Prefetcher(stream, [(start, 5) for start in range(0, 100, 5)], workers=1) as batches:
        given = [next(batches).item.tolist() for _ in range(3)]
        with pytest.raises(ValueError, match="no noise for item 17") as raised:
            next(batches)
    assert given[-1] == [10, 11, 12, 13, 14]
    assert "test_worker_pool.py" in "".join(raised.value.__notes__)


def test_a_process_that_is_killed_is_named_and_not_waited_for(dataset: Dataset) -> None:
    stream = sequences(dataset)
    with Prefetcher(stream, ((start, 8) for start in range(0, 10**9, 8)), workers=2) as batches:
        next(batches)
        first, second = readers()
        # Nobody who asks a job to leave means those that read for it.
        for number in SIGNALS:
            second.send_signal(number)
        for _ in range(20):
            next(batches)
        assert second.is_running()
        # One that is stopped says nothing, and is no reason to wait for it.
        second.suspend()
        while second.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert "does not answer" in stream.report.reading()
        second.resume()
        second.kill()
        with pytest.raises(LostWorkerError, match=rf"pid {second.pid}\) was ended by SIGKILL; .* lower data\.workers"):
            for _ in range(100):
                next(batches)
        assert not first.is_running()


def test_a_read_that_hangs_is_named_and_ended(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe instead of a shard, at which nobody writes: opening it does not come back."""
    stream = EpochStream(dataset, "pretrain", CHANNELS, Reading(0, 6, slow_seconds=0.2, read_ahead=False), False)
    dataset.shard_paths[2].unlink()
    os.mkfifo(dataset.shard_paths[2])
    dataset.shard_bytes = dataset.shard_bytes.copy()
    dataset.shard_bytes[2] = 0
    said = f"process 0: {dataset.shard_paths[2]} for"

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no data for" in record.getMessage() and said in record.getMessage():
                batches.close()

    listener = Listener()
    logging.getLogger("sleepfm.data.prefetch").addHandler(listener)
    batches = Prefetcher(stream, [(0, 100)], workers=1)
    try:
        with pytest.raises(StopIteration):
            next(batches)
    finally:
        logging.getLogger("sleepfm.data.prefetch").removeHandler(listener)
    assert said in caplog.text


SCRIPT = """
import sys
from sleepfm.data.dataset import Dataset
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import EpochStream
import psutil
stream = EpochStream(Dataset.open(sys.argv[1]), "pretrain", ["ECG"])
batches = Prefetcher(stream, ((start, 4) for start in range(0, 10**9, 4)), workers=1)
next(batches)
print(*(child.pid for child in psutil.Process().children()), flush=True)
sys.stdin.read()
"""


def test_processes_end_with_the_one_that_is_killed_above_them(dataset: Dataset) -> None:
    line = [sys.executable, "-c", SCRIPT, str(dataset.path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        left = [psutil.Process(int(pid)) for pid in job.stdout.readline().split()]
        assert len(left) == 1 and left[0].is_running()
        job.kill()
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_one_that_is_stopped_before_it_gave_anything_is_ended(dataset: Dataset) -> None:
    batches = Prefetcher(sequences(dataset), [(0, 8)], workers=1)
    while not readers():
        time.sleep(0.01)
    readers()[0].suspend()
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
