"""Where in the shards the epochs lie that are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sleepfm.constants import CHANNELS
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CRC_MEMBER, QUALITY_MEMBER, SAMPLE_BYTES, channel_member, epoch_bytes
from sleepfm.data.ranges import Index, Ranges, member_ranges, together


class Runs(NamedTuple):
    """Pieces of consecutive epochs of one channel that lie together in one sample, [N] each.

    ``offset`` is the byte of the shard where a piece begins, ``crc`` the place of its first checksum among those of its
    ``sample``, ``place`` the value of the output that its first value goes to, and ``epoch_bytes`` what each epoch takes.
    ``request`` is the index of the request that a piece belongs to, ``first`` its first epoch in the recording.
    """

    shard: Index
    offset: Index
    sample: Index
    crc: Index
    place: Index
    epochs: Index
    epoch_bytes: Index
    request: Index
    record: Index
    channel: Index
    first: Index


def plan_ahead(dataset: Dataset, record: Index, channel: Index, members: Sequence[str] = ()) -> Ranges:
    """The bytes of whole recordings, a channel each, with their quality, checksums and ``members``."""
    run = plan_runs(dataset, record, channel, np.zeros_like(record), dataset.n_epochs[record], np.zeros_like(record))
    small = member_ranges(dataset, np.unique(record), (CRC_MEMBER, QUALITY_MEMBER, *members))
    return together(signal_ranges(run), small)


def signal_ranges(runs: Runs) -> Ranges:
    """Where the signals of ``runs`` lie."""
    return Ranges(runs.shard, runs.offset, runs.offset + runs.epochs * runs.epoch_bytes)


def plan_runs(dataset: Dataset, record: Index, channel: Index, first: Index, count: Index, place: Index) -> Runs:
    """Where the epochs ``first .. first + count`` of (record, channel) lie, split at sample borders.

    ``channel`` indexes :data:`CHANNELS` and must be present in the record. ``place`` is the value of the output
    that the first one of the first epoch goes to.
    """
    size = dataset.segment_epochs
    segment = first // size
    pieces = (first + count - 1) // size - segment + 1
    owner = np.repeat(np.arange(len(first)), pieces)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    segment = segment[owner] + step
    begin = np.maximum(first[owner], segment * size)
    end = np.minimum(first[owner] + count[owner], (segment + 1) * size)
    inside = begin - segment * size
    record, channel = record[owner], channel[owner]
    epochs_of_segment = np.minimum(dataset.n_epochs[record] - segment * size, size)
    sample = dataset.first_segment[record] + segment
    each = epoch_bytes(dataset.rate[record, channel])
    offset = np.empty(len(owner), np.int64)
    for number in np.unique(channel):
        chosen = channel == number
        offset[chosen] = dataset.offsets(channel_member(CHANNELS[number]))[sample[chosen]]
    line = dataset.channel_row[record, channel].astype(np.int64)
    return Runs(
        shard=dataset.shard_of[record].astype(np.int64),
        offset=offset + inside * each,
        sample=sample,
        crc=line * epochs_of_segment + inside,
        place=place[owner] + (begin - first[owner]) * (each // SAMPLE_BYTES),
        epochs=end - begin,
        epoch_bytes=each,
        request=owner,
        record=record,
        channel=channel,
        first=begin,
    )
