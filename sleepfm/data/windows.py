"""Windows of consecutive epochs, from the bytes of shards to tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.epochs import read_signals
from sleepfm.data.order import Index
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, RecordPresence
from sleepfm.errors import ShardError


class Items:
    """Items of a stream, [N] each: row of the recording, index in CHANNELS (EpochStream), first epoch.

    The first epoch is -1 where what would name it (quality, labels) cannot be read: a corrupt item.
    """

    def __init__(self, record: Index, channel: Index, first: Index) -> None:
        self.record = record
        self.channel = channel
        self.first = first

    def __getitem__(self, index: slice | Index) -> Items:
        return Items(self.record[index], self.channel[index], self.first[index])

    @staticmethod
    def concatenate(parts: Sequence[Items]) -> Items:
        """All items of ``parts`` in order, copied."""
        return Items(
            np.concatenate([part.record for part in parts]),
            np.concatenate([part.channel for part in parts]),
            np.concatenate([part.first for part in parts]),
        )


def window_starts(epochs: int, length: int, stride: int) -> Index:
    """First epochs of the windows of a recording; the last window ends with the recording, or is padded."""
    last = max(epochs - length, 0)
    starts = np.arange(0, last + stride, stride)
    return np.minimum(starts, last)


def with_any(starts: Index, length: int, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the windows from ``starts`` [W] on hold an epoch that is ``counted`` [E], [W]."""
    before = np.concatenate([[0], np.cumsum(counted)])
    ends = np.minimum(starts + length, len(before) - 1)
    return np.asarray(before[ends] > before[starts])


def filled_up(starts: Index, live: NDArray[np.bool_]) -> Index:
    """``starts`` [W], those that are ``live`` [W] in the place of the others too; as they are where none is."""
    kept = starts[live]
    return np.where(live, starts, kept[np.arange(len(starts)) % len(kept)]) if len(kept) else starts


def load_windows(
    dataset: Dataset,
    reader: ShardReader,
    presence: RecordPresence,
    labels: RecordLabels | None,
    label_names: Sequence[str],
    channels: Index,
    items: Items,
    length: int,
) -> tuple[Batch, NDArray[np.bool_]]:
    """Windows of ``length`` epochs from ``items``; see :class:`~sleepfm.data.stream.SequenceStream`. Second: which are intact."""
    size, width = len(items.record), len(channels)
    count = np.minimum(dataset.n_epochs[items.record] - items.first, length)
    has = dataset.present[items.record[:, None], channels]  # [B, C]
    item, column = np.nonzero(has)
    # [B, C, L, 3000] filled at the present channels, seen as [B, L, C, 3000]
    values = np.zeros((size, width, length, EPOCH_SAMPLES), np.float32)
    begin = (item * width + column) * length
    rows = values.reshape(-1, EPOCH_SAMPLES)
    read = read_signals(dataset, reader, items.record[item], channels[column], items.first[item], count[item], begin, rows)
    intact = np.ones(size, np.bool_)
    intact[item[~read]] = False
    present = np.zeros((size, length, width), np.bool_)
    for row, (record, first) in enumerate(zip(items.record.tolist(), items.first.tolist(), strict=True)):
        try:
            present[row, : count[row]] = presence.of(record)[first : first + length]
        except ShardError as error:
            reader.fault(record, str(error))
            intact[row] = False
    # What is stored of an unusable epoch is no signal: absent is 0, like a channel that the recording lacks.
    for row, epoch, place in np.argwhere(has[:, None] & (np.arange(length) < count[:, None])[..., None] & ~present).tolist():
        values[row, place, epoch] = 0
    signals = torch.from_numpy(values).transpose(1, 2)
    valid = np.arange(length) < count[:, None]
    stacked = {name: np.full((size, length), -1, np.int64) for name in label_names}
    if labels is not None:
        for row, (record, first) in enumerate(zip(items.record.tolist(), items.first.tolist(), strict=True)):
            try:
                of_record = labels.of(record)
            except ShardError as error:
                reader.fault(record, str(error))
                intact[row] = False
                continue
            for name, target in stacked.items():
                target[row, : count[row]] = of_record[name][first : first + length]
    batch = Batch(
        signals,
        torch.from_numpy(present),
        torch.from_numpy(valid),
        {name: torch.from_numpy(target) for name, target in stacked.items()},
        torch.empty(0),
        [],
        torch.empty(0),
    )
    return batch, intact
