"""Batches are copied to a device while it computes, and are whole when they are used there."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from made_nights import make_dataset, make_night
from torch import Tensor

from sleepfm.data.batch import Batch
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import Reading, SequenceStream
from sleepfm.models.noise import noise_for

PLAN = [(start, 3) for start in range(0, 30, 3)]


class Positions:
    """Batches that tell their positions, all in the same memory, as those of other processes are."""

    def __init__(self) -> None:
        self._memory = _batch(0, 3)

    def batch(self, start: int, count: int) -> Batch:
        places = iter(_tensors(self._memory))
        return _batch(start, count).apply(lambda tensor: next(places).copy_(tensor))


def _batch(start: int, count: int) -> Batch:
    item = torch.arange(start, start + count)
    signals, even = item.float()[:, None, None, None].repeat(1, 2, 1, 5), (item % 2 == 0)[:, None]
    labels = {"stage": item[:, None] % 5}
    return Batch(signals, even[..., None], ~even, labels, item, ["a"] * count, item * 2, item.float()[:, None])


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.apply(found.append)
    return found


def copy_there() -> None:
    """Runs in a process of its own, which has the simulated device."""
    from simulated_cuda import DEVICE, DeviceTensor
    from simulated_streams import install

    streams = install()
    each = len(_tensors(_batch(0, 1)))
    with Prefetcher(Positions(), PLAN, depth=2, device=DEVICE) as batches:
        assert batches._transfer is not None
        copies = batches._transfer._stream
        for number, position in enumerate(PLAN):
            # While this one is computed with, the two after it are being copied; nothing was waited for.
            until, launched = time.monotonic() + 30, min(number + 3, len(PLAN)) * each
            while len(copies.work) < launched:
                assert time.monotonic() < until
                time.sleep(0.001)
            before = copies.done
            batch = next(batches)
            assert before <= number * each and copies.done == (number + 1) * each
            for one, other in zip(_tensors(batch), _tensors(_batch(*position)), strict=True):
                assert isinstance(one, DeviceTensor) and torch.equal(one.held, other)
                assert any(tensor is one and stream is streams.default for tensor, stream in streams.recorded)
        with pytest.raises(StopIteration):
            next(batches)
    assert threading.get_ident() not in streams.threads


def test_copies_run_beside_the_computation_which_waits_for_its_batch_alone() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(copy_there).result()


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_the_device_are_those_of_the_host(tmp_path_factory: pytest.TempPathFactory, workers: int) -> None:
    """While a queue of products keeps the device busy, so that its memory is used again as late as it can be."""
    nights = [make_night(f"n{number}", 40, ("EEG_C4", "ECG")) for number in range(4)]
    overrides = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
    dataset = make_dataset(tmp_path_factory.mktemp("set") / "out", nights, overrides=overrides)

    def stream() -> SequenceStream:
        noise = partial(noise_for, shape=(2, 5), seed=1)
        return SequenceStream(dataset, "pretrain", ("EEG_C4", "ECG"), 2, reading=Reading(1), noise=noise)

    plan = [(start, 64) for start in range(0, 40 * 64, 64)]
    device, host = torch.device("cuda", torch.cuda.current_device()), stream()
    product, sums = torch.randn(4096, 4096, device=device), []
    with Prefetcher(stream(), plan, device=device, workers=workers) as batches:
        for batch in batches:
            for _ in range(10):
                product = product @ product / product.norm()
            sums.append(batch.apply(lambda tensor: tensor.clone()))
            del batch
    for found, position in zip(sums, plan, strict=True):
        for one, other in zip(_tensors(found), _tensors(host.batch(*position)), strict=True):
            assert one.device == device and torch.equal(one.cpu(), other)
