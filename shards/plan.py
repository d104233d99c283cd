"""Which recording goes into which shard: decided once, kept in ``plan.json``, only ever appended to.

A build that goes on, after a crash or with further recordings in the source, keeps every earlier decision, so
finished shards stay as they are and the result does not depend on what happened on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.build_config import check_same
from sleepfm.data.format import MANIFEST_FOLDER, SHARD_FOLDER
from sleepfm.errors import DatasetError
from sleepfm.files import write_json
from sleepfm.lock import LOCK_FILE
from sleepfm.signals.record_names import KEY, name_records

PLAN_FILE = "plan.json"
_SHARD_NAME = re.compile(r"shard-[0-9]{6,}\.tar")


@dataclass(frozen=True)
class Entry:
    """One recording: path relative to the source (POSIX), size in bytes, unique key."""

    path: str
    size: int
    record: str


@dataclass(frozen=True)
class ShardPlan:
    """One shard and one task: ``name`` is the file name of the tar.

    Raises:
        ValueError: names that this module does not give, from a plan that somebody else wrote.
    """

    name: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a valid name of a shard")
        for entry in self.entries:
            if not KEY.fullmatch(entry.record):
                raise ValueError(f"{entry.record!r} is not a valid name of a record")


@dataclass(frozen=True)
class Plan:
    """All shards of a data set, and the identity of the build (:func:`shards.build_config.identity`)."""

    identity: dict[str, Any]
    shards: tuple[ShardPlan, ...] = ()

    def entries(self) -> Iterable[Entry]:
        """All recordings, in shard order."""
        return (entry for shard in self.shards for entry in shard.entries)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Path of every recording -> its bytes when it was planned for the last time."""
        return {entry.path: entry.size for entry in self.entries()}

    @cached_property
    def latest(self) -> dict[str, str]:
        """Path of every recording -> the last shard it was planned into."""
        return {entry.path: shard.name for shard in self.shards for entry in shard.entries}


def read_plan(out: Path, identity: dict[str, Any]) -> Plan:
    """The plan in ``out`` with its own identity, or an empty one with ``identity``.

    The two differ at most in what :func:`shards.build_config.made_differently` tells.

    Raises:
        ConfigError: the folder holds a build of another configuration.
        DatasetError: the folder holds something else, or a plan that cannot be read.
    """
    path = out / PLAN_FILE
    if not path.exists():
        if out.exists() and not _is_fresh(out):
            raise DatasetError(f"{out}: exists and is not a build of shards; give a new or an empty folder")
        return Plan(identity)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(
            ShardPlan(shard["name"], tuple(Entry(**entry) for entry in shard["entries"])) for shard in stored["shards"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a build plan ({error}); build into a new folder") from error
    check_same(stored["identity"], identity, out)
    return Plan(stored["identity"], shards)


def _is_fresh(out: Path) -> bool:
    """Whether ``out`` holds no more than the empty folders and the lock that a build makes before its plan."""
    return out.is_dir() and all(
        path.name == LOCK_FILE or (path.name in (SHARD_FOLDER, MANIFEST_FOLDER) and path.is_dir() and not any(path.iterdir()))
        for path in out.iterdir()
    )


def write_plan(out: Path, plan: Plan) -> None:
    """Write ``plan.json`` atomically."""
    shards = [{"name": shard.name, "entries": [asdict(entry) for entry in shard.entries]} for shard in plan.shards]
    write_json(out / PLAN_FILE, {"identity": plan.identity, "shards": shards}, compact=True)


def extend(plan: Plan, found: dict[str, int], size: int, retry: Iterable[str] = ()) -> Plan:
    """``plan`` with shards of ``size`` recordings appended for what it does not hold yet.

    Args:
        found: path relative to the source -> bytes.
        retry: paths that are planned again although they are known, because they were refused.
    """
    again = set(retry)
    known = {entry.path: entry for entry in plan.entries()}
    new = sorted(path for path in found if path not in known or path in again)
    names = name_records([path for path in new if path not in known], {entry.record for entry in known.values()})
    names |= {path: known[path].record for path in new if path in known}
    entries = [Entry(path, found[path], names[path]) for path in new]
    first = len(plan.shards)
    shards = [
        ShardPlan(f"shard-{first + number:06d}.tar", tuple(entries[begin : begin + size]))
        for number, begin in enumerate(range(0, len(entries), size))
    ]
    return Plan(plan.identity, (*plan.shards, *shards))
