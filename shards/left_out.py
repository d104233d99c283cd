"""Recordings that a build leaves out: those that its user excludes, and planned ones that are gone from the source."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from shards.names import shown
from shards.plan import Entry, Plan
from shards.task import Refusal
from sleepfm.errors import DatasetError, ExcludedError, GoneError, UsageError

# Kinds of refusal that end by themselves: of a file that is back, or no longer excluded.
SET_ASIDE = frozenset({ExcludedError.__name__, GoneError.__name__})


class Exclusion:
    """Whether the recording at a path relative to the source is excluded.

    Args:
        patterns: a path (relative, or below ``source``), a folder of recordings, or a glob pattern of a path or a file's name.

    Attributes:
        names: the recordings of which it was asked that are.
    """

    def __init__(self, patterns: Sequence[str], source: Path) -> None:
        self._patterns = {pattern: _relative(pattern, str(source).rstrip("/") + "/") for pattern in patterns}
        self._used: set[str] = set()
        self.names: set[str] = set()

    def __call__(self, name: str) -> bool:
        """Whether ``name`` is excluded."""
        fitting = [pattern for pattern, wanted in self._patterns.items() if _fits(name, wanted)]
        self._used.update(fitting)
        if fitting:
            self.names.add(name)
        return bool(fitting)

    def check(self) -> None:
        """Raises :class:`UsageError` for a pattern that has fitted no recording: what it was to leave out is in the data then."""
        unused = [pattern for pattern in self._patterns if pattern not in self._used]
        if unused:
            raise UsageError(
                f"--exclude {shown(unused[0])}: matches no recording of the source or the data set; give a path relative to "
                "the source, a folder, or a pattern such as 'shhs1-2000*.edf'"
            )


def _relative(pattern: str, below: str) -> str:
    for path in (pattern, os.path.abspath(pattern)):
        if path.startswith(below):
            return path.removeprefix(below).rstrip("/")
    return pattern.removeprefix("./").rstrip("/")


def _fits(name: str, wanted: str) -> bool:
    return (
        name == wanted
        or name.startswith(f"{wanted}/")
        or fnmatchcase(name, wanted)
        or fnmatchcase(PurePosixPath(name).name, wanted)
    )


def left_out(
    plan: Plan, done: Container[str], stale: Container[str], found: Collection[str], excluded: Collection[str]
) -> dict[str, Refusal]:
    """What the manifest says of recordings of shards that are still to be built, and that are excluded or no longer there.

    Args:
        done, stale: names of finished shards, and of those among the others that are made anew.
        found, excluded: recordings in the source by what stands for them in the plan; none is in both.

    Raises:
        DatasetError: the source holds no recording of the plan, or a shard that is made anew would lose one for ever.
    """
    missing = [(name, entry) for name, entry in _pending(plan, done) if entry.path not in found]
    if missing and not any(path in found or path in excluded for path in plan.latest):
        raise DatasetError(
            f"none of the {len(plan.latest)} recordings of this build is in the source, for example "
            f"{shown(missing[0][1].path)}; give the same source folder, or build into another folder"
        )
    refusals = {}
    for shard, entry in missing:
        if entry.path in excluded:
            refusals[entry.path] = Refusal(entry.path, entry.size, ExcludedError.__name__, "excluded (--exclude)")
        elif shard in stale:
            raise DatasetError(
                f"{shown(entry.path)}: is in {shard}, which must be made again, but is no longer in the source; put it back, "
                "or build into another folder"
            )
        else:
            reason = "was there when this build was planned and is gone; put it back and run the same command again"
            refusals[entry.path] = Refusal(entry.path, entry.size, GoneError.__name__, reason)
    return refusals


def _pending(plan: Plan, done: Container[str]) -> Iterator[tuple[str, Entry]]:
    """Recordings of shards that are not ``done``, each with the shard that it was planned into for the last time."""
    for shard in plan.shards:
        if shard.name not in done:
            yield from ((shard.name, entry) for entry in shard.entries if plan.latest[entry.path] == shard.name)
