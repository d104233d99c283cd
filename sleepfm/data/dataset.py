"""A data set folder, opened: its records, and where every sample's bytes lie."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.lib
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sleepfm.config import digest
from sleepfm.constants import CHANNELS, RATE_HZ, SPLITS, STAGE_NAMES
from sleepfm.data.cache import BlockCache, CachedShard
from sleepfm.data.format import DATASET_FILE, LABELS, LAYOUTS, MANIFEST_FOLDER, SHARD_FOLDER
from sleepfm.data.people import COLUMNS as PEOPLE_COLUMNS
from sleepfm.data.people import People
from sleepfm.data.remote import RemoteFolder, RemoteShards, description_bytes, is_url
from sleepfm.errors import DatasetError, EmptySplitError, ShardError
from sleepfm.wording import counted


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


class ShardFile:
    """A shard on disk, open for reading at ``handle`` as long as this object lives."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises :class:`ShardError` for one that cannot be opened or is not of ``size`` bytes."""
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"{path}: cannot read shard ({error.strerror}); restore it or build again") from error
        found = os.fstat(self.handle).st_size
        if found != size:
            raise ShardError(f"{path}: {found} bytes, the manifest says {size}; restore it or build again")

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


class Dataset:
    """A whole data set of shards. Holds the manifest, not the signals; cheap to open and to copy to processes.

    Per-record arrays, all in the order of ``records.parquet`` (``R`` recordings):

    * ``n_epochs`` [R], ``shard_of`` [R] (index into ``shard_paths``), ``split_of`` [R] (index into ``SPLITS``)
    * ``present`` [R, 10] bool and ``channel_row`` [R, 10] (row of the channel in quality and CRC members), by
      :data:`sleepfm.constants.CHANNELS`
    * ``rate`` [R, 10], Hz at which the channel is stored; models get 100 Hz
    * ``usable`` [R, 10], epochs of good quality by the data set's own rule
    * ``first_segment`` [R], row of the recording's first sample in ``segments.parquet``

    ``origin`` is the folder or URL that was opened; ``path`` the folder of the manifest, which for a URL is in the cache.
    """

    def __init__(self, path: Path, description: dict[str, Any], remote: RemoteShards | None = None) -> None:
        self.path = path
        self.origin = remote.url if remote else str(path)
        self.remote = remote
        self.description = description
        self.digest: str = description["digest"]
        self.config: dict[str, Any] = description["config"]
        self.segment_epochs: int = self.config["segment_epochs"]
        self.layout = LAYOUTS[description["schema"]]
        rates = ["rates"] if description["schema"] > 1 else []  # the first schema stored all at 100 Hz
        table = self._manifest(
            "records",
            ["record", "subject", "split", "shard", "n_epochs", "n_segments", "channels", *rates]
            + [f"usable_{channel}" for channel in CHANNELS],
        )
        shards = self._manifest("shards", ["shard", "bytes"])
        names = shards["shard"].to_pylist()
        strange = [name for name in names if not re.fullmatch(r"[\w-]+\.tar", name)]
        if strange:
            raise DatasetError(f"{self.origin}: {strange[0]!r} is not a valid name of a shard; build the data set again")
        if table.num_rows != description["counts"]["records"] or len(names) != description["counts"]["shards"]:
            stated = description["counts"]
            raise DatasetError(
                f"{self.origin}: the manifest holds {counted(table.num_rows, 'recording')} in {len(names)} shards, dataset.json "
                f"says {stated['records']} in {stated['shards']}; run `sleepfm build` again to finish it"
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
        self.rate = np.full(self.channel_row.shape, RATE_HZ, np.int64)
        for row, channels in enumerate(table["channels"].to_pylist()):
            for position, channel in enumerate(channels):
                self.channel_row[row, CHANNELS.index(channel)] = position
        self.present: NDArray[np.bool_] = self.channel_row >= 0
        if rates:
            # A row's rates stand in the order of its channels.
            there, channel = np.nonzero(self.present)
            order = np.lexsort((self.channel_row[there, channel], there))
            self.rate[there[order], channel[order]] = table["rates"].combine_chunks().flatten().to_numpy()
        self._offsets: dict[str, NDArray[np.int64]] = {}
        self._label_counts: dict[str, NDArray[np.int64]] = {}

    @classmethod
    def open(cls, path: str | Path, cache: BlockCache | None = None) -> Dataset:
        """Open the data set folder ``path``, which may be an fsspec URL such as ``s3://bucket/folder``.

        Behind a URL (``file://`` too) the manifest is copied into ``cache`` (by default the one that
        ``SLEEPFM_CACHE`` and ``SLEEPFM_CACHE_GIB`` name) and what is read of the shards is fetched into it.

        Raises:
            DatasetError: not a data set, not finished, or of another schema version.
        """
        if not is_url(path):
            path = Path(path).resolve()
            return cls(path, read_description(path))
        folder = RemoteFolder(str(path))
        content = description_bytes(folder)
        description = _described(content, f"{folder.url}/{DATASET_FILE}")
        remote = RemoteShards(folder, str(description["digest"]), cache or BlockCache.from_environment())
        remote.copy_manifest(content, check_digest)
        return cls(remote.local, description, remote)

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

    @cached_property
    def people(self) -> People:
        """What is known of the people: families, age, sex, BMI, AHI. A data set of an earlier version knows nothing."""
        table = self._manifest("records", ["subject", "visit", "cohort"])
        known = (
            self._manifest("subjects", list(PEOPLE_COLUMNS)).to_pylist()
            if "subjects" in self.description.get("tables", {})
            else []
        )
        return People(zip(*(column.to_pylist() for column in table.columns), strict=True), known)

    @cached_property
    def cohorts(self) -> list[str]:
        """Cohort of every recording, [R]."""
        names: list[str] = self._manifest("records", ["cohort"])["cohort"].to_pylist()
        return names

    def find(self, record: str) -> tuple[Dataset, int]:
        """The data set and the row of the recording named ``record``. Raises :class:`DatasetError` where there is none."""
        return self, self.index_of(record)

    def index_of(self, record: str) -> int:
        """Row of the recording named ``record``. Raises :class:`DatasetError` where there is none."""
        try:
            return self._index[record]
        except KeyError:
            raise DatasetError(f"{self.origin}: no recording {record!r}; see `sleepfm info {self.origin}`") from None

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
            raise EmptySplitError(
                f"{self.origin}: split {split!r} is empty (of {counted(len(self), 'recording')}); build from more subjects"
            )
        if channels:
            chosen &= self.present[:, [CHANNELS.index(channel) for channel in channels]].any(axis=1)
            if not chosen.any():
                raise EmptySplitError(f"{self.origin}: no recording of split {split!r} has any of {', '.join(channels)}")
        return np.flatnonzero(chosen)

    def offsets(self, member: str) -> NDArray[np.int64]:
        """Byte in its tar where the values of ``member`` of every sample begin, -1 where absent; read on first use. [S]"""
        if member not in self._offsets:
            # Named by the members in format.py, so that only the asked columns are ever in memory.
            table = self._manifest("segments", [f"offset_{self.layout.members[member]}"])
            if table.num_rows != self.description["counts"]["segments"]:
                raise DatasetError(
                    f"{self.origin}: segments.parquet holds {table.num_rows} samples, dataset.json says "
                    f"{self.description['counts']['segments']}; run `sleepfm verify {self.origin}`"
                )
            begin = table.column(0).to_numpy()
            self._offsets[member] = np.where(begin < 0, begin, begin + self.layout.skipped(member))
        return self._offsets[member]

    def label_counts(self, label: str) -> NDArray[np.int64]:
        """Epochs of every recording by value of ``label``, [R, classes]; events have the column of 1 alone."""
        if label not in self._label_counts:
            columns = [f"epochs_{name}" for name in (STAGE_NAMES if label == LABELS[0] else (label,))]
            table = self._manifest("records", columns)
            self._label_counts[label] = np.stack([column.to_numpy() for column in table.columns], axis=1).astype(np.int64)
        return self._label_counts[label]

    def shard_name(self, shard: int) -> str:
        """A shard's path or URL, for messages."""
        return f"{self.origin}/{SHARD_FOLDER}/{self.shard_paths[shard].name}" if self.remote else str(self.shard_paths[shard])

    def shard_file(self, shard: int) -> ShardFile | CachedShard:
        """A shard, open for reading: the file of the size that the manifest says, or what the cache holds of one behind a URL.

        Raises:
            ShardError: missing, cut short, or not to be had.
        """
        path, size = self.shard_paths[shard], int(self.shard_bytes[shard])
        return self.remote.open(path.name, size) if self.remote is not None else ShardFile(path, size)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def _manifest(self, name: str, columns: list[str]) -> Any:
        return _read_table(self.path, name, columns)


def read_description(path: str | Path) -> dict[str, Any]:
    """The content of ``dataset.json`` below the folder or URL ``path``.

    Raises:
        DatasetError: missing (not a data set, or a build that did not finish), invalid, or another schema.
    """
    if is_url(path):
        return _described(description_bytes(RemoteFolder(str(path))), f"{path}/{DATASET_FILE}")
    path = Path(path)
    file = path / DATASET_FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        hint = (
            "its build has not finished: run the same `sleepfm build` again"
            if (path / SHARD_FOLDER).is_dir()
            else "not a data set; make one with `sleepfm build SRC OUT`"
        )
        raise DatasetError(f"{path}: no {DATASET_FILE} here; {hint}") from None
    except OSError as error:
        raise DatasetError(f"{file}: not a data set description ({error})") from error
    return _described(content, str(file))


def _described(content: bytes, name: str) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(content)
        schema = description["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{name}: not a data set description ({error})") from error
    if schema not in LAYOUTS:
        raise DatasetError(
            f"{name}: has schema {schema}, but this version reads schemas {' and '.join(map(str, LAYOUTS))}; build the shards "
            "again"
        )
    return description


def dataset_digest(build: str, shards: list[Any]) -> str:
    """The data set's digest, over all that a model trained on it depends on.

    Args:
        build: digest of the build's identity.
        shards: for every shard in order, [name, SHA-256, [[record, split], ...]].
    """
    return digest([build, shards])


def check_digest(path: Path, description: dict[str, Any], name: str) -> None:
    """Raises :class:`DatasetError` unless the tables below ``path`` are those that ``description`` of ``name`` means."""
    shards = _read_table(path, "shards", ["shard", "sha256"]).to_pylist()
    members: dict[str, list[list[str]]] = {row["shard"]: [] for row in shards}
    for row in _read_table(path, "records", ["record", "split", "shard"]).to_pylist():
        members.setdefault(row["shard"], []).append([row["record"], row["split"]])
    content = [[row["shard"], row["sha256"], members[row["shard"]]] for row in shards]
    if dataset_digest(description["config_digest"], content) != description["digest"]:
        raise DatasetError(f"{name}: its manifest is not the one that {DATASET_FILE} describes; copy the data set again")


def _read_table(path: Path, name: str, columns: list[str]) -> Any:
    file = path / MANIFEST_FOLDER / f"{name}.parquet"
    try:
        return pq.read_table(file, columns=columns, memory_map=False)
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise DatasetError(
            f"{file}: cannot read the manifest ({str(error).splitlines()[0]}); run `sleepfm build` again to write it"
        ) from error
