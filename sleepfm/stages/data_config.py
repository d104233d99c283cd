"""The data set of a job, and how it is read."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field

from sleepfm.config import Config
from sleepfm.data.dataset import read_description
from sleepfm.data.report import SLOW_SECONDS
from sleepfm.data.stream import Reading
from sleepfm.data.tolerance import MAX_CORRUPT
from sleepfm.models.device import accelerator
from sleepfm.training.ranks.distributed import World

# Processes that read for one GPU, where its share of the cores allows them.
_WORKERS_A_GPU = 4


class SourceConfig(Config):
    """Where the shards are (a folder or an fsspec URL), in which order they are read, and which faults are tolerated."""

    path: str
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards whose items are shuffled together."""
    max_corrupt: float = Field(default=MAX_CORRUPT, ge=0, le=1)
    """Share of corrupt items above which the run stops; below, they are replaced, counted and reported."""
    slow_read: float = Field(default=SLOW_SECONDS, gt=0)
    """Seconds above which an access to a shard is reported, by name."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes of each rank that read the training data; 0 for a thread. ``auto``: none on CPUs, and for a GPU half of the cores
    that the ranks of a host leave one another, from 1 to 4."""

    def reading(self, seed: int, partitions: int = 1, block: int = 1) -> Reading:
        """For the streams of a job."""
        order = (seed, self.shuffle_shards, partitions, block)
        return Reading(*order, self.max_corrupt, self.slow_read, workers=self._reading_processes())

    def _reading_processes(self) -> int:
        if self.workers != "auto":
            return self.workers
        if accelerator() == "cpu":
            return 0
        cores = len(os.sched_getaffinity(0)) // World.from_environment().local_size
        return min(max(1, cores // 2), _WORKERS_A_GPU)


def dataset_digest(config: Any) -> str:
    """Digest of the data set at ``config.data.path``, without opening it. Raises :class:`DatasetError`."""
    return str(read_description(config.data.path)["digest"])
