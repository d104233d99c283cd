"""Is a data set what its manifest says: every checksum, offset and count."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.lib
import pyarrow.parquet as pq

from shards.build_config import SplitConfig, made_differently
from shards.duplicates import Duplicates, members_aside
from shards.index import index_of
from shards.manifest import TABLES, describe, table_digests
from shards.people import read_stored
from shards.plan import PLAN_FILE, Plan, read_plan
from shards.split import split_of
from shards.task import read_sidecar, sidecar_path
from shards.working_copy import WorkingCopy, copy_named, local_file, working_copy
from sleepfm.config import digest
from sleepfm.data.dataset import Dataset, dataset_digest, read_description
from sleepfm.data.format import DATASET_FILE, HEADER_MEMBER, INDEX_FILE, LAYOUTS, MANIFEST_FOLDER, SCHEMA, SHARD_FOLDER
from sleepfm.errors import DatasetError, DuplicateError, SleepFMError
from sleepfm.files import read_json, sha256_file
from sleepfm.signals.files import is_remote

# Applies a function to each of many arguments and gives the results in their order.
StarMap = Callable[[Callable[..., list[str]], Iterable[tuple[Any, ...]]], Iterable[list[str]]]


def verify(path: Path, starmap: StarMap = itertools.starmap) -> Iterator[str]:
    """Yields one line for each fault found in the folder or URL ``path``; none means that the data set is whole.

    Checks the tables against ``dataset.json`` and its digest, the folder against the tables and the plan (missing
    and extra shards), size and SHA-256 of every tar, that every member stands where ``segments.parquet`` says, and
    that ``dataset.json`` is what plan and sidecars make. Where tables are damaged, tars are
    held against what stands beside them.

    Args:
        starmap: how the tars are gone through, one by one or in parallel.

    Raises:
        DatasetError: not a data set, or a table of its manifest cannot be read.
    """
    path = path if is_remote(path) else path.resolve()
    with working_copy(path) as copy:
        for fault in _faults(copy, starmap):
            yield copy_named(copy.folder, path, fault)


def _faults(copy: WorkingCopy, starmap: StarMap) -> Iterator[str]:
    path = copy.folder
    description = read_description(path)
    try:
        damaged = [name for name, found in table_digests(path).items() if found != description["tables"].get(name, "")]
        for name in damaged:
            yield (
                f"{path / MANIFEST_FOLDER / name}.parquet: missing, or its SHA-256 is not the one in {DATASET_FILE}; "
                "run the same `sleepfm build` again to write it anew"
            )
        yield from _check_plan(path, description, whole=not damaged)
        if damaged:
            # Nothing can be held against the tables; what stands beside each tar says what it is.
            for found in starmap(check_shard, _shards_by_sidecars(copy, description)):
                yield from found
        else:
            yield from _check_content(copy, description, starmap)
            yield from _check_index(path, description)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"{path / DATASET_FILE}: is damaged ({error!r}); run the same `sleepfm build` again"


def recordings_aside(path: str | Path) -> Iterator[str]:
    """A line for each recording that the data set at ``path``, a folder or URL, sets aside as a duplicate, which is no fault."""
    try:
        rows = pq.read_table(Dataset.open(path).path / MANIFEST_FOLDER / "quarantine.parquet").to_pylist()
    except (DatasetError, OSError, pyarrow.lib.ArrowException):
        return
    yield from (f"set aside {row['source']}: {row['reason']}" for row in rows if row["error"] == DuplicateError.__name__)


def _check_plan(path: Path, description: dict[str, Any], whole: bool) -> Iterator[str]:
    """``dataset.json`` against the plan and the shards' sidecars, from which a build goes on; its content if the tables are
    ``whole``, which say who is in which split.
    """
    if not (path / PLAN_FILE).is_file():
        yield f"{path / PLAN_FILE}: missing; the data set can be read, but no build can continue in it"
        return
    try:
        plan = read_plan(path, description["config"])
        if made_differently(plan.identity, {key: value for key, value in description["config"].items() if key in plan.identity}):
            yield f"{path / DATASET_FILE}: is not that of the plan; run the same build again"
            return
    except SleepFMError as error:
        yield str(error)
        return
    build = digest(plan.identity)
    undone = [shard.name for shard in plan.shards if read_sidecar(path, shard, build) is None]
    for name in undone:
        yield f"{sidecar_path(path, name)}: missing, damaged, or not that of its shard; run the same build again"
    splits = read_stored(path, SplitConfig(**plan.identity["split"])).splits if whole else {}
    if whole and not undone and not _is_made(path, plan, build, splits, description):
        yield f"{path / DATASET_FILE}: is not what the plan and the shards make"
    expected = {name for shard in plan.shards for name in (shard.name, sidecar_path(path, shard.name).name)}
    for file in sorted((path / SHARD_FOLDER).iterdir()):
        if file.name not in expected and file.suffix != ".tar":
            yield f"{file}: not a file of this data set; remove it"


def _is_made(path: Path, plan: Plan, build: str, splits: Mapping[str, str], description: dict[str, Any]) -> bool:
    """Whether plan and sidecars make ``description``, with the ``splits`` of people that the manifest says."""
    try:
        return {**describe(path, plan, build, splits), "tables": description["tables"]} == description
    except KeyError:
        # Somebody in a shard is not in the manifest.
        return False


def _check_content(copy: WorkingCopy, description: dict[str, Any], starmap: StarMap) -> Iterator[str]:
    path = copy.folder
    tables = {name: _table(path / MANIFEST_FOLDER / f"{name}.parquet") for name in TABLES if name in description["tables"]}
    records = tables["records"].to_pylist()
    shards = tables["shards"].to_pylist()
    yield from _check_counts(path, description, tables)
    people = tables["subjects"].to_pylist() if "subjects" in tables else []
    yield from _check_splits(records, people, SplitConfig(**description["config"]["split"]))
    yield from _check_duplicates(records)
    by_shard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_shard[record["shard"]].append(record)
    content = [
        [shard["shard"], shard["sha256"], [[row["record"], row["split"]] for row in by_shard[shard["shard"]]]] for shard in shards
    ]
    build = digest(description["config"])
    if build != description["config_digest"] or dataset_digest(build, content) != description["digest"]:
        yield f"{path / DATASET_FILE}: the digest is not that of the manifest"
    for tar in sorted((path / SHARD_FOLDER).glob("*.tar")):
        if tar.name not in by_shard:
            yield f"{tar}: a shard that the manifest does not list"
    # Of a URL the copy knows sizes alone.
    work = _shards_to_check(copy, description["schema"], shards, by_shard, tables["segments"])
    for found in starmap(check_shard, work):
        yield from found


def _shards_to_check(
    copy: WorkingCopy, schema: int, shards: list[dict[str, Any]], by_shard: dict[str, list[dict[str, Any]]], segments: pa.Table
) -> Iterator[tuple[Path, dict[str, Any], dict[str, int], list[str]]]:
    """Arguments of :func:`check_shard` for each shard of the manifest."""
    first = 0
    for shard in shards:
        members: dict[str, int] = {}
        faults: list[str] = []
        for record in by_shard[shard["shard"]]:
            own = segments.slice(first, record["n_segments"])
            first += record["n_segments"]
            faults += _check_segments(record, own, schema)
            members |= _members(own, schema)
        members |= members_aside(_sidecar(copy.folder, shard["shard"]), {record["record"] for record in by_shard[shard["shard"]]})
        yield copy.url / SHARD_FOLDER / shard["shard"], shard, members, faults


def _shards_by_sidecars(
    copy: WorkingCopy, description: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any], dict[str, int], list[str]]]:
    """Arguments of :func:`check_shard` for each finished shard of the plan, as its sidecar says; none for a former schema."""
    if description["schema"] != SCHEMA:
        return
    try:
        plan = read_plan(copy.folder, description["config"])
    except SleepFMError:
        return
    for shard in plan.shards:
        sidecar = read_sidecar(copy.folder, shard, digest(plan.identity))
        if sidecar is not None and sidecar["bytes"]:
            yield copy.url / SHARD_FOLDER / shard.name, sidecar, members_aside(sidecar, ()), []


def check_shard(tar: Path, shard: dict[str, Any], members: dict[str, int], faults: list[str]) -> list[str]:
    """Faults of one tar behind those that are known; what a Ray task runs.

    Args:
        tar: a file or a URL, which is fetched to be read.
        shard: its row of ``shards.parquet``, or its sidecar.
        members: name -> byte offset of what it holds.
    """
    return [*faults, *_check_shard(tar, shard, members)]


def _check_index(path: Path, description: dict[str, Any]) -> Iterator[str]:
    """``wids.json``, which came with the second schema, against the tables and what was set aside."""
    if description["schema"] == 1:
        return
    held: dict[str, dict[str, int]] = defaultdict(dict)
    for row in _table(path / MANIFEST_FOLDER / "records.parquet").select(["record", "shard", "n_segments"]).to_pylist():
        held[row["shard"]][row["record"]] = row["n_segments"]
    samples: dict[str, int] = {}
    for name in _table(path / MANIFEST_FOLDER / "shards.parquet")["shard"].to_pylist():
        own = held[name]
        aside = members_aside(_sidecar(path, name), own.keys())
        samples[f"{SHARD_FOLDER}/{name}"] = sum(own.values()) + sum(member.endswith(f".{HEADER_MEMBER}") for member in aside)
    if read_json(path / INDEX_FILE) != index_of(description["digest"], samples):
        yield f"{path / INDEX_FILE}: missing, or not that of the shards; run the same build again"


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise DatasetError(f"{path}: cannot read the manifest ({str(error).splitlines()[0]})") from error


def _check_counts(path: Path, description: dict[str, Any], tables: dict[str, pa.Table]) -> Iterator[str]:
    found = {
        "records": tables["records"].num_rows,
        "shards": tables["shards"].num_rows,
        "segments": tables["segments"].num_rows,
        "epochs": int(tables["records"]["n_epochs"].to_numpy().sum()),
        "bytes": int(tables["shards"]["bytes"].to_numpy().sum()),
        "quarantined": tables["quarantine"].num_rows,
    }
    for name, count in description["counts"].items():
        if found[name] != count:
            called = "refused" if name == "quarantined" else name
            yield f"{path / MANIFEST_FOLDER}: {found[name]} {called}, {DATASET_FILE} says {count}"


def _check_splits(records: list[dict[str, Any]], people: list[dict[str, Any]], config: SplitConfig) -> Iterator[str]:
    """Every person and every family is in one split, which is that of its hash unless splits are stratified."""
    families = {row["subject"]: row["family"] for row in people if row["family"]}
    first: dict[str, str] = {}
    seen: set[str] = set()
    listed = {row["subject"] for row in people}
    for row in records:
        key = families.get(row["subject"]) or row["subject"]
        expected = first.setdefault(key, row["split"]) if config.stratify else split_of(key, config)
        if row["split"] != expected:
            whose = "subject" if key == row["subject"] else "family"
            yield f"{row['record']}: in split {row['split']}, its {whose}'s is {expected}"
        if row["record"] in seen:
            yield f"{row['record']}: listed twice"
        seen.add(row["record"])
        if people and row["subject"] not in listed:
            yield f"{row['record']}: its subject is not in subjects.parquet"


def _check_duplicates(records: list[dict[str, Any]]) -> Iterator[str]:
    """No two recordings that the manifest lists have the same signals."""
    rows = ({**record, "provenance": json.loads(record["provenance"])} for record in records)
    for later, first in Duplicates.among([{"records": rows}]).first.items():
        yield f"{later}: has the same signals as {first}; run the same build again, which leaves it out"


def _sidecar(path: Path, shard: str) -> dict[str, Any]:
    """What stands beside a tar, empty where it cannot be read; its own check is another one."""
    try:
        sidecar = read_json(sidecar_path(path, shard))
        return sidecar if isinstance(sidecar, dict) else {}
    except (OSError, ValueError):
        return {}


def _check_segments(record: dict[str, Any], segments: pa.Table, schema: int) -> Iterator[str]:
    names = set(segments["record"].to_pylist())
    first, epochs = segments["first_epoch"].to_numpy(), segments["n_epochs"].to_numpy()
    # The first schema numbered epochs from 0.
    begin = np.cumsum(epochs) - epochs + (schema > 1)
    if names != {record["record"]} or not np.array_equal(first, begin) or epochs.sum() != record["n_epochs"]:
        yield f"{record['record']}: its samples do not make up its {record['n_epochs']} epochs"


def _members(segments: pa.Table, schema: int) -> dict[str, int]:
    """Member name -> byte offset, for some rows of ``segments``."""
    keys = [f"{row['record']}_{row['segment']:04d}" for row in segments.select(["record", "segment"]).to_pylist()]
    return {
        f"{key}.{member}": offset
        for member in LAYOUTS[schema].members.values()
        for key, offset in zip(keys, segments[f"offset_{member}"].to_pylist(), strict=True)
        if offset >= 0
    }


def _check_shard(tar: Path, shard: dict[str, Any], members: dict[str, int]) -> Iterator[str]:
    try:
        with local_file(tar) as file:
            size = file.stat().st_size
            if size != shard["bytes"]:
                yield f"{tar}: {size} bytes, the manifest says {shard['bytes']}"
                return
            if sha256_file(file) != shard["sha256"]:
                yield (
                    f"{tar}: its SHA-256 is not the manifest's; its bytes have changed: remove it and run the same build again"
                )
                return
            with tarfile.open(file) as archive:
                stored = {member.name: member.offset_data for member in archive}
    except (FileNotFoundError, IsADirectoryError):
        yield f"{tar}: missing"
        return
    if stored != members:
        wrong = sorted(set(stored.items()) ^ set(members.items()))
        yield f"{tar}: {len(wrong)} members are not where segments.parquet says; first {wrong[0][0]}"
