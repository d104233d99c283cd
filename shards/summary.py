"""What a build says of refused recordings when it is done, and with which status it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sleepfm.errors import ExcludedError, InternalError


def refusal_line(source: str, error: str, reason: str) -> str:
    """A recording of the quarantine: its path, class of the error, and the reason. What the user excludes is not refused."""
    return f"excluded {source}" if error == ExcludedError.__name__ else f"refused {source}: {error}: {reason}"


def refused_lines(quarantine: Sequence[Mapping[str, Any]], where: str, gone: Collection[str] = ()) -> list[str]:
    """A line for each kind of refusal; the user's own exclusions, files that were removed since and faults of this program are
    told apart.

    Args:
        quarantine: rows of the table that is at ``where``.
        gone: as for :func:`status`.
    """
    kinds = Counter(str(row["error"]) for row in _present(quarantine, gone))
    excluded, faults = kinds.pop(ExcludedError.__name__, 0), kinds.get(InternalError.__name__, 0)
    lines = []
    if kinds:
        lines.append(f"{kinds.total()} recordings refused, see {where}:")
        lines += [f"  {count:6d}  {error}" for error, count in kinds.most_common()]
    if faults:
        lines.append(
            f"{faults} recording{'s' if faults > 1 else ''} met a fault of this program, with its place in that table: please "
            "report it; --retry-refused tries them again with another version"
        )
    if removed := len(quarantine) - kinds.total() - excluded:
        lines.append(f"{removed} recordings that were refused before are gone from the source, and do not count")
    if excluded:
        lines.append(f"{excluded} recordings excluded")
    return lines


def status(
    counts: Mapping[str, int],
    quarantine: Sequence[Mapping[str, Any]],
    unused_scorings: int,
    max_refused: float,
    gone: Collection[str] = (),
) -> int:
    """0 where at most the share ``max_refused`` of the recordings is refused or lacks a scoring that was found, else 1.

    Args:
        gone: sources of rows that an earlier build has refused and whose files are removed now: the user has seen to them.
    """
    refused = sum(row["error"] != ExcludedError.__name__ for row in _present(quarantine, gone))
    recordings = counts["records"] + refused
    return int(refused + unused_scorings > max_refused * recordings or not counts["records"])


def _present(quarantine: Sequence[Mapping[str, Any]], gone: Collection[str]) -> list[Mapping[str, Any]]:
    return [row for row in quarantine if row["error"] == ExcludedError.__name__ or row.get("source") not in gone]
