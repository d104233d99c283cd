"""What a build says of refused recordings when it is done, and with which status it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sleepfm.errors import ExcludedError, InternalError


def refused_lines(quarantine: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """A line for each kind of refusal; the user's own exclusions and faults of this program are told apart.

    Args:
        quarantine: rows of the table that is at ``where``.
    """
    kinds = Counter(str(row["error"]) for row in quarantine)
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
    if excluded:
        lines.append(f"{excluded} recordings excluded")
    return lines


def status(counts: Mapping[str, int], quarantine: Sequence[Mapping[str, Any]], unused_scorings: int, max_refused: float) -> int:
    """0 where at most the share ``max_refused`` of the recordings is refused or lacks a scoring that was found, else 1."""
    refused = sum(row["error"] != ExcludedError.__name__ for row in quarantine)
    recordings = counts["records"] + refused
    return int(refused + unused_scorings > max_refused * recordings or not counts["records"])
