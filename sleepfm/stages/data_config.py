"""The data set of a job, and how it is read."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sleepfm.config import Config
from sleepfm.data.dataset import read_description
from sleepfm.data.report import SLOW_SECONDS
from sleepfm.data.stream import Reading
from sleepfm.data.tolerance import MAX_CORRUPT


class SourceConfig(Config):
    """Where the shards are (a folder or an fsspec URL), in which order they are read, and which faults are tolerated."""

    path: str
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards whose items are shuffled together."""
    max_corrupt: float = Field(default=MAX_CORRUPT, ge=0, le=1)
    """Share of corrupt items above which the run stops; below, they are replaced, counted and reported."""
    slow_read: float = Field(default=SLOW_SECONDS, gt=0)
    """Seconds above which an access to a shard is reported, by name."""

    def reading(self, seed: int, partitions: int = 1, block: int = 1) -> Reading:
        """For the streams of a job."""
        return Reading(seed, self.shuffle_shards, partitions, block, self.max_corrupt, self.slow_read)


def dataset_digest(config: Any) -> str:
    """Digest of the data set at ``config.data.path``, without opening it. Raises :class:`DatasetError`."""
    return str(read_description(config.data.path)["digest"])
