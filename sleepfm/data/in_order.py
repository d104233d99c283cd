"""Whole recordings in order: every epoch counted exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sleepfm.constants import CHANNELS
from sleepfm.data.ahead import fetching_ahead
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, RecordPresence
from sleepfm.data.windows import Items, load_windows, window_starts
from sleepfm.errors import ShardError
from sleepfm.tasks import TASKS


def iter_record(
    dataset: Dataset,
    record: str,
    channels: Sequence[str],
    length: int = 1,
    windows: int = 64,
    labels: Sequence[str] | None = None,
    reader: ShardReader | None = None,
) -> Iterator[Batch]:
    """The recording as windows of ``length`` epochs in order, at most ``windows`` a batch.

    Windows do not overlap, but for the last, which ends with the recording so that its epochs have whole context:
    those that an earlier window has counted are not ``valid`` in it. ``labels`` are those of every task by default.

    Raises:
        ShardError: an epoch is corrupt; an evaluation never leaves one out in silence.
        DatasetError: no such recording.
    """
    reader = reader or ShardReader(dataset)
    row = dataset.index_of(record)
    labels = tuple(TASKS) if labels is None else labels
    store = RecordLabels(dataset, reader, labels) if labels else None
    numbers = np.array([CHANNELS.index(channel) for channel in channels], dtype=np.int64)
    presence = RecordPresence(dataset, reader, numbers)
    starts = window_starts(int(dataset.n_epochs[row]), length, length)
    counted_to = np.arange(len(starts)) * length
    for begin in range(0, len(starts), windows):
        first = starts[begin : begin + windows]
        items = Items(np.full(len(first), row), np.zeros(len(first), np.int64), first)
        batch, intact = load_windows(dataset, reader, presence, store, labels, numbers, items, length)
        if not intact.all():
            raise ShardError(f"{record}: {reader.report.last_fault}; restore the shard or build again")
        epoch = first[:, None] + np.arange(length)
        fresh = torch.from_numpy(epoch >= counted_to[begin : begin + windows, None])
        yield Batch(
            batch.signals,
            batch.present,
            batch.valid & fresh,
            batch.labels,
            torch.arange(begin, begin + len(first)),
            [record] * len(first),
            torch.from_numpy(first),
        )


def iter_eval(
    dataset: Dataset,
    split: str,
    channels: Sequence[str],
    length: int = 1,
    windows: int = 64,
    labels: Sequence[str] | None = None,
) -> Iterator[Batch]:
    """:func:`iter_record` over the recordings of ``split`` that have any of ``channels``, in shard order.

    Raises:
        DatasetError: the split is empty.
        ShardError: an epoch is corrupt.
    """
    reader = ShardReader(dataset)
    read = tuple(TASKS) if labels is None else labels
    for row in fetching_ahead(dataset, dataset.select(split, channels).tolist(), channels, read, reader):
        yield from iter_record(dataset, dataset.names[row], channels, length, windows, labels, reader)
