"""The manifest of a data set, merged from the shards' sidecars; ``dataset.json`` comes last.

Rows are written a few shards at a time, so that the memory this takes does not grow with the cohort.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.build_config import QualityConfig, SplitConfig
from shards.duplicates import Duplicates
from shards.index import index_of
from shards.names import shown
from shards.people import SUBJECTS, JoinedPeople, PersonKey, Tables, join_people, read_stored
from shards.plan import Plan
from shards.task import read_sidecar
from sleepfm.config import digest
from sleepfm.constants import CHANNELS, SPLITS, STAGE_NAMES
from sleepfm.data.dataset import dataset_digest
from sleepfm.data.format import DATASET_FILE, INDEX_FILE, LABELS, MANIFEST_FOLDER, MEMBERS, SHARD_FOLDER
from sleepfm.errors import DatasetError
from sleepfm.files import atomic_file, write_json

SHARDS_IN_ROW_GROUP = 64

RECORDS = pa.schema(
    [
        ("record", pa.string()),
        ("subject", pa.string()),
        ("visit", pa.string()),
        ("cohort", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("source", pa.string()),
        ("source_bytes", pa.int64()),
        ("n_epochs", pa.int32()),
        ("n_segments", pa.int32()),
        ("channels", pa.list_(pa.string())),
        ("rates", pa.list_(pa.int32())),  # Hz at which each of the channels is stored
        ("scored_epochs", pa.int32()),
        ("has_events", pa.bool_()),
        *((f"epochs_{name}", pa.int32()) for name in (*STAGE_NAMES, *LABELS[1:])),
        *((f"usable_{channel}", pa.int32()) for channel in CHANNELS),
        ("signals", pa.string()),  # JSON: per channel median, iqr, clipped_samples
        ("provenance", pa.string()),  # JSON: montage, missing and ambiguous channels, scoring, warnings
    ]
)
SEGMENTS = pa.schema(
    [
        ("record", pa.dictionary(pa.int32(), pa.string())),
        ("segment", pa.int32()),
        ("first_epoch", pa.int32()),  # numbered from 1, as in every file
        ("n_epochs", pa.int32()),
        *((f"offset_{member}", pa.int64()) for member in MEMBERS),
    ]
)
SHARDS = pa.schema([("shard", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("records", pa.int32())])
QUARANTINE = pa.schema([("source", pa.string()), ("source_bytes", pa.int64()), ("error", pa.string()), ("reason", pa.string())])
TABLES = {"records": RECORDS, "segments": SEGMENTS, "shards": SHARDS, "quarantine": QUARANTINE, "subjects": SUBJECTS}
# Written as the shards are gone through.
_BY_SHARD = tuple(name for name in TABLES if name != "subjects")


def sidecars(out: Path, plan: Plan, build: str, duplicates: Duplicates | None = None) -> Iterator[dict[str, Any]]:
    """The sidecar of every planned shard in order, without recordings that are ``duplicates``, which are found if not given.

    Raises:
        DatasetError: a shard is not done.
    """
    if duplicates is None:
        duplicates = Duplicates.among(_as_written(out, plan, build))
    return map(duplicates.without, _as_written(out, plan, build))


def _as_written(out: Path, plan: Plan, build: str) -> Iterator[dict[str, Any]]:
    for shard in plan.shards:
        sidecar = read_sidecar(out, shard, build)
        if sidecar is None:
            raise DatasetError(f"{out / SHARD_FOLDER / shard.name}: not finished; run the same build again")
        yield sidecar


@dataclass(frozen=True)
class _Whole:
    """What is known once all sidecars were read: everybody in the data set, which recordings are duplicates, and the samples of
    each tar, by its path below the data set; those of duplicates stay in the tar.
    """

    people: JoinedPeople
    duplicates: Duplicates
    samples: dict[str, int]


def _read_whole(out: Path, plan: Plan, build: str, tables: Tables) -> _Whole:
    """Read all sidecars once; people with what ``tables`` and an earlier manifest say.

    Raises as :func:`shards.people.join_people`.
    """
    config = SplitConfig(**plan.identity["split"])
    whose: dict[str, PersonKey] = {}
    samples: dict[str, int] = {}

    def noted() -> Iterator[dict[str, Any]]:
        for sidecar in _as_written(out, plan, build):
            if sidecar["records"]:
                samples[f"{SHARD_FOLDER}/{sidecar['shard']}"] = sum(record["n_segments"] for record in sidecar["records"])
            for record in sidecar["records"]:
                whose[record["source"]] = (record["subject"], record["visit"], record["cohort"])
            yield sidecar

    duplicates = Duplicates.among(noted())
    keys = (key for source, key in whose.items() if source not in duplicates)
    return _Whole(join_people(keys, config, tables, read_stored(out, config), out), duplicates, samples)


def write_manifest(
    out: Path, plan: Plan, people_tables: Tables | None = None, see: Callable[[dict[str, Any]], object] = lambda sidecar: None
) -> dict[str, Any]:
    """Write ``manifest/*.parquet`` and then ``dataset.json``; returns the latter's content.

    A ``dataset.json`` that would change is removed first: the folder is a whole data set before and after, and
    not a data set in between.

    Args:
        people_tables: what is known of people; without them it is what the manifest said before.
        see: gets every sidecar, in order, with duplicates in its quarantine.

    Raises:
        DatasetError: a shard is not done, or people would come into another split.
        StorageError: the folder cannot be written to.
    """
    build = digest(plan.identity)
    whole = _read_whole(out, plan, build, people_tables or Tables())
    people, duplicates = whole.people, whole.duplicates
    description = describe(out, plan, build, people.splits, duplicates, see)
    path = out / DATASET_FILE
    current = {**description, "tables": table_digests(out)}
    index = index_of(description["digest"], whole.samples)
    same_people = people.people == read_stored(out, SplitConfig(**plan.identity["split"])).people
    if same_people and _stored(path) == current and _stored(out / INDEX_FILE) == index:
        return current
    path.unlink(missing_ok=True)
    (out / MANIFEST_FOLDER).mkdir(exist_ok=True)
    with ExitStack() as stack:
        writers = {}
        for name, schema in TABLES.items():
            file = stack.enter_context(atomic_file(out / MANIFEST_FOLDER / f"{name}.parquet"))
            writers[name] = stack.enter_context(pq.ParquetWriter(file, schema))
        groups: dict[str, list[dict[str, Any]]] = {name: [] for name in _BY_SHARD}
        for number, sidecar in enumerate(sidecars(out, plan, build, duplicates), start=1):
            for name, group in groups.items():
                group += rows(name, sidecar, plan, people.splits)
            if number % SHARDS_IN_ROW_GROUP == 0:
                _write_groups(writers, groups)
        _write_groups(writers, {**groups, "subjects": people.rows()})
    description["tables"] = table_digests(out)
    write_json(out / INDEX_FILE, index)
    write_json(path, description, compact=True)
    return description


def _write_groups(writers: dict[str, pq.ParquetWriter], groups: dict[str, list[dict[str, Any]]]) -> None:
    """Write one row group to each table and empty ``groups``."""
    for name, group in groups.items():
        writers[name].write_table(pa.Table.from_pylist(group, TABLES[name]))
        group.clear()


def table_digests(out: Path) -> dict[str, str]:
    """SHA-256 of each table of the manifest, empty where it is missing."""
    digests = {}
    for name in TABLES:
        try:
            with (out / MANIFEST_FOLDER / f"{name}.parquet").open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            digests[name] = ""
    return digests


def _stored(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def describe(
    out: Path,
    plan: Plan,
    build: str,
    splits: Mapping[str, str],
    duplicates: Duplicates | None = None,
    see: Callable[[dict[str, Any]], object] = lambda sidecar: None,
) -> dict[str, Any]:
    """The content of ``dataset.json`` but the digests of the tables.

    Counts the recordings, subjects and epochs of each split, by the split of each subject, and gives the data set its digest.
    ``see`` as for :func:`write_manifest`.
    """
    counts = dict.fromkeys(("shards", "records", "segments", "epochs", "bytes", "quarantined"), 0)
    split = {name: dict.fromkeys(("subjects", "records", "epochs"), 0) for name in SPLITS}
    subjects: dict[str, str] = {}
    content: list[Any] = []
    rules: dict[str, str | None] = {}
    for sidecar in sidecars(out, plan, build, duplicates):
        see(sidecar)
        rules |= sidecar.get("rules", {})
        counts["shards"] += bool(sidecar["bytes"])
        counts["bytes"] += sidecar["bytes"]
        counts["quarantined"] += len(rows("quarantine", sidecar, plan))
        members = []
        for record in sidecar["records"]:
            counts["records"] += 1
            counts["segments"] += record["n_segments"]
            counts["epochs"] += record["n_epochs"]
            name = splits[record["subject"]]
            split[name]["records"] += 1
            split[name]["epochs"] += record["n_epochs"]
            split[name]["subjects"] += record["subject"] not in subjects
            subjects[record["subject"]] = name
            members.append([record["record"], name])
        if sidecar["bytes"]:
            content.append([sidecar["shard"], sidecar["sha256"], members])
    # A build of an older version names the rules of all cohorts in its identity.
    config = {"cohort_rules": dict(sorted(rules.items())), **plan.identity}
    return {
        "schema": plan.identity["schema"],
        "config": config,
        "config_digest": digest(config),
        "digest": dataset_digest(digest(config), content),
        "quality_mask": QualityConfig(**plan.identity["quality"]).mask,
        "counts": counts,
        "split": split,
    }


def rows(
    table: str, sidecar: dict[str, Any], plan: Plan, splits: Mapping[str, str] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """The rows that one shard gives to ``table``; ``splits`` of the subjects are for ``records``."""
    if table == "quarantine":
        # A recording that was planned again is judged by its latest shard alone.
        return [
            {"source": shown(row["path"]), "source_bytes": row["size"], "error": row["error"], "reason": row["reason"]}
            for row in sidecar["quarantine"]
            if plan.latest[row["path"]] == sidecar["shard"]
        ]
    if not sidecar["bytes"]:
        return []
    if table == "shards":
        return [
            {
                "shard": sidecar["shard"],
                "bytes": sidecar["bytes"],
                "sha256": sidecar["sha256"],
                "records": len(sidecar["records"]),
            }
        ]
    if table == "records":
        return [
            {
                **record,
                "split": splits[record["subject"]],
                "shard": sidecar["shard"],
                "source": shown(record["source"]),
                "signals": json.dumps(record["signals"], sort_keys=True),
                "provenance": json.dumps(record["provenance"], sort_keys=True),
            }
            for record in sidecar["records"]
        ]
    return [
        dict(zip(SEGMENTS.names, (record["record"], number, *segment), strict=True))
        for record, segments in zip(sidecar["records"], sidecar["segments"], strict=True)
        for number, segment in enumerate(segments)
    ]
