"""Batches of one rank, read ahead by a thread while the step before them runs."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sleepfm.errors import ConfigError
from sleepfm.training.config import TrainConfig
from sleepfm.training.distributed import World
from sleepfm.training.stage import Stream

if TYPE_CHECKING:
    from sleepfm.data.batch import Batch


@dataclass(frozen=True)
class Shares:
    """How the items of a step are divided.

    Step ``s`` takes items ``s * global_batch …``; its micro-step ``a`` the ``a``-th part of them, of which
    every rank takes one contiguous slice. The order of the data is the same for any number of processes.
    """

    global_batch: int
    accumulation: int
    micro_batch: int

    @staticmethod
    def of(config: TrainConfig, world: World) -> Shares:
        """Raises :class:`ConfigError` when the global batch cannot be divided evenly."""
        parts = config.accumulation * world.size
        if config.global_batch % parts:
            raise ConfigError(
                f"train.global_batch={config.global_batch} cannot be divided by train.accumulation="
                f"{config.accumulation} x {world.size} processes; make it a multiple of {parts}"
            )
        micro = config.global_batch // parts
        if config.micro_batch not in (None, micro):
            raise ConfigError(
                f"train.micro_batch={config.micro_batch}: with train.global_batch={config.global_batch}, "
                f"train.accumulation={config.accumulation} and {world.size} processes it is {micro}"
            )
        return Shares(config.global_batch, config.accumulation, micro)

    def start(self, step: int, part: int, rank: int) -> int:
        """First global item of micro-step ``part`` of ``step`` on ``rank``."""
        return step * self.global_batch + part * (self.global_batch // self.accumulation) + rank * self.micro_batch


class Feed:
    """Iterates over this rank's micro-batches from ``step`` to ``steps``, on ``device``, ``depth`` ahead."""

    def __init__(self, stream: Stream, shares: Shares, world: World, step: int, steps: int, depth: int = 2) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._device = world.device
        starts = (shares.start(s, part, world.rank) for s in range(step, steps) for part in range(shares.accumulation))
        self._thread = threading.Thread(
            target=self._fill, args=(stream, starts, shares.micro_batch), name="feed", daemon=True
        )
        self.waited_seconds = 0.0
        self._thread.start()

    def next(self) -> Batch:
        """The next micro-batch; an error of the stream is raised here."""
        began = time.perf_counter()
        item = self._queue.get()
        self.waited_seconds += time.perf_counter() - began
        if isinstance(item, BaseException):
            raise item
        return to_device(item, self._device)

    def close(self) -> None:
        self._stopped.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=5)

    def _fill(self, stream: Stream, starts: Any, count: int) -> None:
        for start in starts:
            item: Any
            try:
                item = stream.batch(start, count)
            except BaseException as error:
                item = error
            while not self._stopped.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set() or isinstance(item, BaseException):
                return


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch``, a dataclass of tensors, dictionaries of tensors and plain values, on ``device``."""
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {}
    for item in dataclasses.fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, torch.Tensor):
            moved[item.name] = value.to(device, non_blocking=True)
        elif isinstance(value, dict):
            moved[item.name] = {key: tensor.to(device, non_blocking=True) for key, tensor in value.items()}
    return dataclasses.replace(batch, **moved)
