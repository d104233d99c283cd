"""A data set folder, opened: its records, and where every sample's bytes lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.lib
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS, SPLITS
from sleepfm.data.format import DATASET_FILE, MANIFEST_FOLDER, SCHEMA, SHARD_FOLDER
from sleepfm.errors import DatasetError, ShardError


@dataclass(frozen=True)
class RecordRow:
    """One recording of a data set; ``index`` is its row in ``records.parquet``."""

    index: int
    record: str
    subject: str
    visit: str
    cohort: str
    split: str
    shard: str
    n_epochs: int
    channels: tuple[str, ...]
    scored_epochs: int
    has_events: bool
    source: str


class Dataset:
    """A whole data set of shards. Holds the manifest, not the signals; cheap to open and to copy to processes.

    Per-record arrays, all in the order of ``records.parquet`` (``R`` recordings):

    * ``n_epochs`` [R], ``shard_of`` [R] (index into ``shard_paths``), ``split_of`` [R] (index into ``SPLITS``)
    * ``present`` [R, 10] bool and ``channel_row`` [R, 10] (row of the channel in quality and CRC members), by
      :data:`sleepfm.constants.CHANNELS`
    * ``usable`` [R, 10], epochs of good quality by the data set's own rule
    * ``first_segment`` [R], row of the recording's first sample in ``segments.parquet``
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description
        self.digest: str = description["digest"]
        self.config: dict[str, Any] = description["config"]
        self.segment_epochs: int = self.config["segment_epochs"]
        table = self._manifest(
            "records",
            ["record", "subject", "split", "shard", "n_epochs", "n_segments", "channels"]
            + [f"usable_{channel}" for channel in CHANNELS],
        )
        shards = self._manifest("shards", ["shard", "bytes"])
        names = shards["shard"].to_pylist()
        if table.num_rows != description["counts"]["records"] or len(names) != description["counts"]["shards"]:
            raise DatasetError(
                f"{path}: the manifest holds {table.num_rows} recordings in {len(names)} shards, dataset.json "
                f"says {description['counts']}; run `python -m shards build` again to finish it"
            )
        self.shard_paths = tuple(path / SHARD_FOLDER / name for name in names)
        self.shard_bytes = shards["bytes"].to_numpy()
        self.names: list[str] = table["record"].to_pylist()
        self.subjects: list[str] = table["subject"].to_pylist()
        self.n_epochs: NDArray[np.int64] = table["n_epochs"].to_numpy().astype(np.int64)
        self.split_of = np.array([SPLITS.index(name) for name in table["split"].to_pylist()], np.int8)
        shard_index = {name: index for index, name in enumerate(names)}
        self.shard_of = np.array([shard_index[name] for name in table["shard"].to_pylist()], np.int32)
        segments = table["n_segments"].to_numpy().astype(np.int64)
        self.first_segment = np.cumsum(segments) - segments
        self.usable: NDArray[np.int64] = np.stack([table[f"usable_{channel}"].to_numpy() for channel in CHANNELS], axis=1).astype(
            np.int64
        )
        self.channel_row = np.full((table.num_rows, len(CHANNELS)), -1, np.int8)
        for row, channels in enumerate(table["channels"].to_pylist()):
            for position, channel in enumerate(channels):
                self.channel_row[row, CHANNELS.index(channel)] = position
        self.present: NDArray[np.bool_] = self.channel_row >= 0
        self._offsets: dict[str, NDArray[np.int64]] = {}

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open the data set folder ``path``.

        Raises:
            DatasetError: not a data set, not finished, or of another schema version.
        """
        path = Path(path).resolve()
        description = read_description(path)
        return cls(path, description)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def records(self) -> Sequence[RecordRow]:
        """All recordings, in shard order."""
        columns = [
            "record",
            "subject",
            "visit",
            "cohort",
            "split",
            "shard",
            "n_epochs",
            "channels",
            "scored_epochs",
            "has_events",
            "source",
        ]
        rows = self._manifest("records", columns).to_pylist()
        return tuple(RecordRow(index=index, **{**row, "channels": tuple(row["channels"])}) for index, row in enumerate(rows))

    def index_of(self, record: str) -> int:
        """Row of the recording named ``record``. Raises :class:`DatasetError` where there is none."""
        try:
            return self._index[record]
        except KeyError:
            raise DatasetError(f"{self.path}: no recording {record!r}; see `python -m shards info {self.path}`") from None

    def select(self, split: str, channels: Sequence[str] = ()) -> NDArray[np.int64]:
        """Rows of the recordings of ``split`` that have at least one of ``channels`` (any, if empty).

        Raises:
            DatasetError: an unknown split or channel, or no such recording.
        """
        unknown = [channel for channel in channels if channel not in CHANNELS]
        if unknown:
            raise DatasetError(f"unknown channels {unknown}; the canonical channels are {', '.join(CHANNELS)}")
        if split not in SPLITS:
            raise DatasetError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        chosen = self.split_of == SPLITS.index(split)
        if not chosen.any():
            raise DatasetError(f"{self.path}: split {split!r} is empty ({len(self)} recordings in all); build from more subjects")
        if channels:
            chosen &= self.present[:, [CHANNELS.index(channel) for channel in channels]].any(axis=1)
            if not chosen.any():
                raise DatasetError(f"{self.path}: no recording of split {split!r} has any of {', '.join(channels)}")
        return np.flatnonzero(chosen)

    def offsets(self, member: str) -> NDArray[np.int64]:
        """Byte offset in its tar of ``member`` of every sample, -1 where absent; read on first use. [S]"""
        if member not in self._offsets:
            # Named by the members in format.py, so that only the asked columns are ever in memory.
            table = self._manifest("segments", [f"offset_{member}"])
            if table.num_rows != self.description["counts"]["segments"]:
                raise DatasetError(
                    f"{self.path}: segments.parquet holds {table.num_rows} samples, dataset.json says "
                    f"{self.description['counts']['segments']}; run `python -m shards verify {self.path}`"
                )
            self._offsets[member] = table.column(0).to_numpy()
        return self._offsets[member]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def _manifest(self, name: str, columns: list[str]) -> Any:
        path = self.path / MANIFEST_FOLDER / f"{name}.parquet"
        try:
            return pq.read_table(path, columns=columns, memory_map=False)
        except (OSError, pyarrow.lib.ArrowException) as error:
            raise DatasetError(
                f"{path}: cannot read the manifest ({str(error).splitlines()[0]}); "
                "run `python -m shards build` again to write it anew"
            ) from error


def read_description(path: Path) -> dict[str, Any]:
    """The content of ``dataset.json`` below ``path``.

    Raises:
        DatasetError: missing (not a data set, or a build that did not finish), invalid, or another schema.
    """
    file = path / DATASET_FILE
    try:
        description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = description["schema"]
    except FileNotFoundError:
        hint = (
            "its build has not finished: run the same `python -m shards build` again"
            if (path / SHARD_FOLDER).is_dir()
            else "not a data set; make one with `python -m shards build SRC OUT`"
        )
        raise DatasetError(f"{path}: no {DATASET_FILE} here; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file}: not a data set description ({error})") from error
    if schema != SCHEMA:
        raise DatasetError(f"{file}: schema {schema}, this version reads schema {SCHEMA}; build the shards again")
    return description


def check_shard_size(dataset: Dataset, shard: int) -> Path:
    """The path of a shard whose size is what the manifest says. Raises :class:`ShardError`."""
    path = dataset.shard_paths[shard]
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: cannot read shard ({error.strerror}); restore it or build again") from error
    if found != dataset.shard_bytes[shard]:
        raise ShardError(f"{path}: {found} bytes, the manifest says {dataset.shard_bytes[shard]}; restore it or build again")
    return path
