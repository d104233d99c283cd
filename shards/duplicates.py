"""Recordings that are the same night under two names, known by the digests of their samples
(:mod:`sleepfm.signals.edf.sample_digests`). The first in the order of the plan counts; the others are set aside.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shards.names import shown
from sleepfm.data.format import MEMBERS
from sleepfm.errors import DuplicateError


class Duplicates:
    """Which recordings are set aside.

    Attributes:
        first: path of the recording that counts, by the path of each that is set aside.
        unknown: recordings without digests, from a build of an earlier version or too short, which are compared with none.
    """

    def __init__(self, first: Mapping[str, str], unknown: int = 0) -> None:
        self.first = first
        self.unknown = unknown

    @classmethod
    def among(cls, sidecars: Iterable[Mapping[str, Any]]) -> Duplicates:
        """Those among the recordings of ``sidecars``, in order. Holds a few numbers of each in memory."""
        paths: list[str] = []
        digests, owners = array("Q"), array("L")
        unknown = 0
        for sidecar in sidecars:
            for record in sidecar["records"]:
                found = list(_digests(record["provenance"]))
                unknown += not found
                digests.extend(found)
                owners.extend([len(paths)] * len(found))
                paths.append(record["source"])
        return cls({paths[own]: paths[other] for own, other in _first_of(digests, owners).items()}, unknown)

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
                "reason": f"has the same signals as {shown(self.first[record['source']])}, and would be a second recording of "
                "one night, maybe of a second person; remove one of the two",
            }
            for record in aside
        ]
        return {
            **sidecar,
            "records": [record for record, _ in kept],
            "segments": [segments for _, segments in kept],
            "quarantine": [*sidecar["quarantine"], *refused],
        }


def members_aside(sidecar: Mapping[str, Any], listed: set[str]) -> dict[str, int]:
    """Byte offsets of the members in a tar of recordings that the manifest, whose records are ``listed``, does not have."""
    return {
        f"{record['record']}_{number:04d}.{member}": offset
        for record, segments in zip(sidecar["records"], sidecar["segments"], strict=True)
        if record["record"] not in listed
        for number, segment in enumerate(segments)
        for member, offset in zip(MEMBERS, segment[2:], strict=True)
        if offset >= 0
    }


def _digests(provenance: Mapping[str, Any]) -> Iterator[int]:
    for channel in provenance.get("channels", {}).values():
        yield from (int(digest, 16) for digest in channel.get("sample_digests", ()))


def _first_of(digests: array[int], owners: array[int]) -> dict[int, int]:
    """Of each recording that shares a digest with an earlier one, the first of all that are the same."""
    values, recordings = np.array(digests, np.uint64), np.array(owners, np.int64)
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
