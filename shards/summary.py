"""What a build says of refused recordings when it is done, and with which status it ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sleepfm.errors import ExcludedError, InternalError
from sleepfm.signals.refusals import ReasonCounts


def refusal_line(source: str, error: str, reason: str) -> str:
    """A refused recording: its path and the reason. ``error`` tells apart what the user excludes, which is not refused."""
    return f"excluded {source}" if error == ExcludedError.__name__ else f"refused {source}: {reason}"


def refused_lines(quarantine: Sequence[Mapping[str, Any]], where: str, gone: Collection[str] = ()) -> list[str]:
    """How many recordings were refused, and how many for each reason; the user's own exclusions, files that were removed since
    and faults of this program are told apart.

    Args:
        quarantine: rows of the table that is at ``where``.
        gone: as for :func:`status`.
    """
    present = _present(quarantine, gone)
    refused = [row for row in present if row["error"] != ExcludedError.__name__]
    excluded = len(present) - len(refused)
    faults = sum(row["error"] == InternalError.__name__ for row in refused)
    lines = []
    if refused:
        reasons = ReasonCounts()
        for row in refused:
            reasons.add(str(row["reason"]))
        lines += [f"{_recordings(len(refused))} refused, see {where}:", *(f"  {line}" for line in reasons.lines())]
    if faults:
        lines.append(
            f"{_recordings(faults)} met a fault of this program; the table says where in the program: please report it; "
            "--retry-refused tries them again with another version"
        )
    if removed := len(quarantine) - len(present):
        lines.append(f"{_recordings(removed)} refused before, and no longer in the source: not counted")
    if excluded:
        lines.append(f"{_recordings(excluded)} excluded")
    return lines


def _recordings(count: int) -> str:
    return f"{count} recording{'s' if count != 1 else ''}"


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
