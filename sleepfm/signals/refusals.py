"""Reasons for which recordings are refused, counted over many of them."""

from __future__ import annotations

import re
from collections import Counter

# Distinct reasons that are kept, and shown.
_KEPT, _SHOWN = 10_000, 20
_LONGEST = 160
# What differs between recordings that are refused for one reason: texts, file names, digests of names, numbers.
_OWN = re.compile(
    r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|[^\s:;,()]+\.(?:edf|bdf|rec|xml|csv|tsv|txt|annot|eannot)\b"""
    r"|\b[0-9a-f]{16}\b|(?<![A-Za-z])[-+]?\d+(?:[.,:]\d+)*",
    re.IGNORECASE,
)
_LIST = re.compile(r"…(?:, …)+")


class ReasonCounts:
    """Counts reasons; those that differ in texts, names and numbers alone are one, in which ``…`` stands for what differs."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._own: dict[str, list[str]] = {}
        self._others = 0

    def add(self, reason: str) -> None:
        """Count the ``reason`` of one recording."""
        reason = reason.replace("…", "...")
        kind, own = _OWN.sub("…", reason), _OWN.findall(reason)
        if kind not in self._counts and len(self._counts) >= _KEPT:
            self._others += 1
            return
        self._counts[kind] += 1
        before = self._own.setdefault(kind, own)
        self._own[kind] = [one if one == other else "…" for one, other in zip(before, own, strict=True)]

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent ones first."""
        counts: Counter[str] = Counter()
        for kind, count in self._counts.items():
            first, *others = kind.split("…")
            reason = first + "".join(own + other for own, other in zip(self._own[kind], others, strict=True))
            # Lists of different lengths are of one reason too.
            counts[_LIST.sub("…", reason)] += count
        shown = counts.most_common(_SHOWN)
        lines = [f"{count:6d}  {_shortened(reason)}" for reason, count in shown]
        rest = counts.total() - sum(count for _, count in shown) + self._others
        return [*lines, f"{rest:6d}  for other reasons"] if rest else lines


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
