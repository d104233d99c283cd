"""Which bytes of which shards are read: planned from the manifest, joined, and cut into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CRC_BYTES, CRC_MEMBER, QUALITY_MEMBER

Index = NDArray[np.int64]


class Ranges(NamedTuple):
    """Bytes ``begin .. end`` of shards, [N] each."""

    shard: Index
    begin: Index
    end: Index


NOTHING = Ranges(*np.empty((3, 0), np.int64))


def together(*parts: Ranges) -> Ranges:
    """All ranges of ``parts``."""
    return Ranges(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def merged(ranges: Ranges, near: int) -> Ranges:
    """``ranges`` in the order of shards and bytes; those that lie at most ``near`` bytes apart are one."""
    if not len(ranges.shard):
        return ranges
    order = np.lexsort((ranges.begin, ranges.shard))
    shard, begin, end = ranges.shard[order], ranges.begin[order], ranges.end[order]
    # A range may end behind those after it.
    reach = end.copy()
    starts = np.flatnonzero(np.concatenate([[True], shard[1:] != shard[:-1]]))
    for first, last in zip(starts, [*starts[1:], len(shard)], strict=True):
        reach[first:last] = np.maximum.accumulate(end[first:last])
    apart = np.ones(len(order), np.bool_)
    apart[1:] = (shard[1:] != shard[:-1]) | (begin[1:] > reach[:-1] + near)
    starts = np.flatnonzero(apart)
    return Ranges(shard[starts], begin[starts], np.maximum.reduceat(end, starts))


def member_ranges(dataset: Dataset, records: Index, members: Sequence[str]) -> Ranges:
    """Where the small ``members`` (labels, quality, checksums) of whole recordings, rows of ``dataset``, lie.

    Raises:
        DatasetError: the manifest cannot be read.
    """
    segments = -(-dataset.n_epochs[records] // dataset.segment_epochs)
    record = np.repeat(records, segments)
    segment = np.arange(len(record)) - np.repeat(np.cumsum(segments) - segments, segments)
    return together(NOTHING, *(sample_ranges(dataset, record, segment, member) for member in members))


def sample_ranges(dataset: Dataset, record: Index, segment: Index, member: str) -> Ranges:
    """Where a small ``member`` lies in the samples ``segment`` [N] of ``record`` [N]; without those that lack it."""
    size = dataset.segment_epochs
    begin = dataset.offsets(member)[dataset.first_segment[record] + segment]
    each = {CRC_MEMBER: CRC_BYTES, QUALITY_MEMBER: 1}.get(member, 0) * dataset.present[record].sum(axis=1)
    epochs = np.minimum(dataset.n_epochs[record] - segment * size, size)
    there = begin >= 0
    ranges = Ranges(dataset.shard_of[record].astype(np.int64), begin, begin + epochs * np.maximum(each, 1))
    return Ranges(*(field[there] for field in ranges))
