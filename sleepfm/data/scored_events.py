"""The scored events of a recording, from the headers of its samples."""

from __future__ import annotations

import json

from sleepfm.data.dataset import Dataset
from sleepfm.data.format import HEADER_MEMBER
from sleepfm.data.reader import ShardReader
from sleepfm.signals.scorings.scoring import Event


def scored_events(dataset: Dataset, reader: ShardReader, row: int) -> tuple[Event, ...]:
    """All events of the recording in ``row``; one that spans two samples is in both headers and here once.

    Raises:
        ShardError: the shard is missing or ends early.
    """
    return _of_headers(dataset, reader, row, "events")


def unclear_events(dataset: Dataset, reader: ShardReader, row: int) -> tuple[Event, ...]:
    """Respiratory events whose text, here their type, was not understood; none in data sets that did not keep them.

    Raises:
        ShardError: the shard is missing or ends early.
    """
    return _of_headers(dataset, reader, row, "unclear")


def _of_headers(dataset: Dataset, reader: ShardReader, row: int, key: str) -> tuple[Event, ...]:
    first, shard = int(dataset.first_segment[row]), int(dataset.shard_of[row])
    samples = -(-int(dataset.n_epochs[row]) // dataset.segment_epochs)
    found: dict[Event, None] = {}
    for offset in dataset.offsets(HEADER_MEMBER)[first : first + samples].tolist():
        size = _member_size(reader, shard, offset)
        header = json.loads(reader.read_bytes(shard, offset, size))
        found.update(dict.fromkeys(Event(**event) for event in header.get(key, ())))
    return tuple(found)


def _member_size(reader: ShardReader, shard: int, offset: int) -> int:
    """Size of the tar member whose content begins at ``offset``, from its header block (USTAR, octal)."""
    return int(reader.read_bytes(shard, offset - 512 + 124, 12).rstrip(b"\0 "), 8)
