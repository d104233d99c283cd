"""Recordings that are the same night under two names, known by the digests of their samples
(:mod:`sleepfm.signals.edf.sample_digests`). One of them counts, that with a scoring before one without, else the first in the
order of the plan; the others are set aside.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.names import shown
from sleepfm.data.format import MEMBERS
from sleepfm.errors import DuplicateError


class Duplicates:
    """Which recordings are set aside.

    Attributes:
        first: path of the recording that counts, by the path of each that is set aside.
        unscored: those of them that lack a scoring which the one that counts has.
        unknown: recordings without digests, from a build of an earlier version or too short, which are compared with none.
    """

    def __init__(self, first: Mapping[str, str], unknown: int = 0, unscored: Collection[str] = frozenset()) -> None:
        self.first = first
        self.unscored = unscored
        self.unknown = unknown

    @classmethod
    def among(cls, sidecars: Iterable[Mapping[str, Any]]) -> Duplicates:
        """Those among the recordings of ``sidecars``, in order. Holds a few numbers of each in memory."""
        paths: list[str] = []
        digests, owners, scored = array("Q"), array("L"), array("B")
        unknown = 0
        for sidecar in sidecars:
            for record in sidecar["records"]:
                found = list(_digests(record["provenance"]))
                unknown += not found
                digests.extend(found)
                owners.extend([len(paths)] * len(found))
                paths.append(record["source"])
                # Stages and events are worth more than stages alone.
                scored.append((record["scored_epochs"] > 0) + record["has_events"])
        # Those that know more come first.
        order = np.argsort(-np.array(scored, np.int64), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        firsts = _first_of(np.array(digests, np.uint64), rank[np.array(owners, np.int64)])
        pairs = [(int(order[own]), int(order[other])) for own, other in firsts.items()]
        unscored = {paths[own] for own, other in pairs if scored[other] > scored[own]}
        return cls({paths[own]: paths[other] for own, other in pairs}, unknown, unscored)

    def __contains__(self, source: str) -> bool:
        return source in self.first

    def without(self, sidecar: dict[str, Any]) -> dict[str, Any]:
        """``sidecar`` with the recordings that are set aside in its quarantine; their samples stay in the tar."""
        aside = [record for record in sidecar["records"] if record["source"] in self.first]
        if not aside:
            return sidecar
        kept = [
            (record, segments)
            for record, segments in zip(sidecar["records"], sidecar["segments"], strict=True)
            if record["source"] not in self.first
        ]
        refused = [
            {
                "path": record["source"],
                "size": record["source_bytes"],
                "error": DuplicateError.__name__,
                "reason": f"has the same signals as {shown(self.first[record['source']])}"
                f"{', whose scoring says more' if record['source'] in self.unscored else ''}, so it would be a second recording "
                "of the same night, perhaps of another person; remove one of the two",
            }
            for record in aside
        ]
        return {
            **sidecar,
            "records": [record for record, _ in kept],
            "segments": [segments for _, segments in kept],
            "quarantine": [*sidecar["quarantine"], *refused],
        }


def members_aside(sidecar: Mapping[str, Any], listed: Container[str]) -> dict[str, int]:
    """Byte offsets of the members in a tar of recordings that the manifest, whose records are ``listed``, does not have."""
    return {
        f"{record['record']}_{number:04d}.{member}": offset
        for record, segments in zip(sidecar.get("records", ()), sidecar.get("segments", ()), strict=True)
        if record["record"] not in listed
        for number, segment in enumerate(segments)
        for member, offset in zip(MEMBERS, segment[2:], strict=True)
        if offset >= 0
    }


def _digests(provenance: Mapping[str, Any]) -> Iterator[int]:
    for channel in provenance.get("channels", {}).values():
        yield from (int(digest, 16) for digest in channel.get("sample_digests", ()))


def _first_of(values: NDArray[np.uint64], recordings: NDArray[np.int64]) -> dict[int, int]:
    """Of each recording that shares a digest with an earlier one, the first of all that are the same.

    ``values`` [N] are digests, ``recordings`` [N] whose each is.
    """
    order = np.lexsort((recordings, values))
    values, recordings = values[order], recordings[order]
    same = (values[1:] == values[:-1]) & (recordings[1:] != recordings[:-1])
    first: dict[int, int] = {}
    # In the order of the later one, so that the earlier one's own first is known by then.
    pairs = sorted({(int(recordings[at + 1]), int(recordings[at])) for at in np.flatnonzero(same)})
    for later, earlier in pairs:
        root = first.get(earlier, earlier)
        first[later] = min(first.get(later, root), root)
    return first
