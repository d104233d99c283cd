"""Batches of one rank, read ahead and copied to its device while the step before them runs."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from sleepfm.data.batch import Batch
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.report import report_of
from sleepfm.data.worker_pool import workers_of
from sleepfm.errors import ConfigError
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import TrainConfig
from sleepfm.training.stage import Stream

log = logging.getLogger(__name__)


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
                f"train.accumulation={config.accumulation} and {world.size} processes it is {micro}; remove train.micro_batch"
            )
        return Shares(config.global_batch, config.accumulation, micro)

    def start(self, step: int, part: int, rank: int) -> int:
        """First global item of micro-step ``part`` of ``step`` on ``rank``."""
        return step * self.global_batch + part * (self.global_batch // self.accumulation) + rank * self.micro_batch


class Feed:
    """This rank's micro-batches from ``step`` to ``steps``, on its device, and how long they were waited for."""

    def __init__(self, stream: Stream, shares: Shares, world: World, step: int, steps: int) -> None:
        plan = (
            (shares.start(number, part, world.rank), shares.micro_batch)
            for number in range(step, steps)
            for part in range(shares.accumulation)
        )
        self._rank = world.rank
        self._report = report_of(stream)
        self._batches = Prefetcher(stream, plan, device=world.device, workers=workers_of(stream))
        self.waited_seconds = 0.0

    def next(self) -> Batch:
        """The next micro-batch; an error of the stream is raised here."""
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """Stop reading ahead, and sum up by shard what was corrupt or slow on this rank."""
        self._batches.close()
        for line in self._report.lines() if self._report else ():
            log.warning("rank %d: %s", self._rank, line)
