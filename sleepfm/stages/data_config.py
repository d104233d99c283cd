"""The data of a job, one data set or several, and how it is read."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sleepfm.config import Config
from sleepfm.data.identity import DataDigest, is_name
from sleepfm.data.mixture import Mixture, SourcePlan, read_digest
from sleepfm.data.report import SLOW_SECONDS
from sleepfm.data.stream import Reading
from sleepfm.data.tolerance import MAX_CORRUPT
from sleepfm.errors import DatasetError
from sleepfm.models.device import accelerator
from sleepfm.training.ranks.distributed import World

# Processes that read for one GPU, where its share of the cores allows them.
_WORKERS_A_GPU = 4


class MixtureSource(Config):
    """One data set of several, and its share of the items that are learnt from."""

    path: str = Field(min_length=1)
    """Folder or fsspec URL."""
    name: str = ""
    """What its figures are called by; the end of ``path`` unless stated."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the items, relative to the other sources'."""
    epochs: float | None = Field(default=None, gt=0)
    """How many passes over the source one pass of the mixture takes."""

    @field_validator("name")
    @classmethod
    def _fits_figures(cls, name: str) -> str:
        if name and not is_name(name):
            raise ValueError("only letters, digits, `_`, `-` and `.`: the name becomes part of names of figures")
        return name


class SourceConfig(Config):
    """Where the shards are (folders or fsspec URLs), in which order they are read, and which faults are tolerated."""

    path: str = ""
    """The one data set; the short form of ``sources`` with one entry."""
    sources: tuple[MixtureSource, ...] = ()
    """The data sets of a mixture, instead of ``path``."""
    temperature: float = Field(default=1.0, gt=0)
    """Of a mixture without ``weight`` and ``epochs``: shares are those of ``size ** (1 / temperature)``."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards whose items are shuffled together."""
    max_corrupt: float = Field(default=MAX_CORRUPT, ge=0, le=1)
    """Share of corrupt items above which the run stops; below, they are replaced, counted and reported."""
    slow_read: float = Field(default=SLOW_SECONDS, gt=0)
    """Seconds above which an access to a shard is reported, by name."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes of each rank that read the training data; 0 for a thread. ``auto``: none on CPUs, and for a GPU half of the cores
    that the ranks of a host leave one another, from 1 to 4."""

    @field_validator("path", mode="before")
    @classmethod
    def _taken_away(cls, path: Any) -> Any:
        # `data.path=null` on the command line, where the file states one.
        return "" if path is None else path

    @model_validator(mode="after")
    def _one_form(self) -> SourceConfig:
        if self.path and self.sources:
            raise ValueError("data.path and data.sources: set only one of them; data.path=null removes what the file sets")
        if not self.path and not self.sources:
            raise ValueError("data.path: missing; give a data set, or several in data.sources")
        return self

    @model_validator(mode="after")
    def _one_kind_of_share(self) -> SourceConfig:
        stated = [(source.weight is not None, source.epochs is not None) for source in self.sources]
        if any(both == (True, True) for both in stated) or len(set(stated)) > 1:
            raise ValueError("data.sources: give weight for every source, or epochs for every source, or neither for any")
        if self.temperature != 1 and stated and any(stated[0]):
            raise ValueError("data.temperature: shares are already given by weight or epochs; remove one of the two")
        return self

    def plans(self) -> list[SourcePlan]:
        """The data sets that are asked for."""
        if self.path:
            return [SourcePlan(self.path)]
        return [SourcePlan(source.path, source.name, source.weight, source.epochs) for source in self.sources]

    def open(self) -> Mixture:
        """The data sets, opened. Raises :class:`DatasetError`, see :meth:`Mixture.open`."""
        return Mixture.open(self.plans(), self.temperature)

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


def dataset_digest(config: Any) -> DataDigest:
    """Digest of the data sets that ``config.data`` names, without opening them. Raises :class:`DatasetError`."""
    try:
        return read_digest(config.data.plans(), config.data.temperature)
    except DatasetError as error:
        single = "this is data.path of the configuration; data.path=FOLDER names another data set"
        raise type(error)(f"{error}; {single if config.data.path else 'see data.sources of the configuration'}") from error
