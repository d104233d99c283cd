"""A data set as one WebDataset sample an epoch, at 100 Hz, for trainers that want no more than that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from shards.index import index_of
from shards.writer import ShardWriter
from sleepfm.constants import CHANNELS, SPLITS
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset, RecordRow
from sleepfm.data.format import HEADER_MEMBER, INDEX_FILE, LABELS, channel_member, npy
from sleepfm.data.in_order import iter_record
from sleepfm.data.reader import ShardReader
from sleepfm.files import write_json
from sleepfm.output import Origin, whole_folder


def export_epochs(path: Path, folder: Path) -> Iterator[str]:
    """Write ``folder/SPLIT/shard-*.tar``, a tar for each shard of the data set; yields each recording's name when it is written.

    A sample is an epoch in which a channel is usable, named ``<record>_<epoch>``: ``<channel>.npy`` float32 [3000] for each
    usable channel, ``<label>.cls``, -1 where unscored, and ``json`` with record, subject, cohort and number of the epoch, from
    1. Beside the tars of a split stands its index, ``wids.json``.

    Raises:
        DatasetError: not a data set.
        ShardError: a sample is corrupt.
        StorageError: ``folder`` cannot be written to, or holds something else than this export.
    """
    dataset = Dataset.open(path)
    reader = ShardReader(dataset)
    for split in SPLITS:
        rows = [row for row in dataset.records if row.split == split]
        if not rows:
            continue
        with whole_folder(folder / split, Origin("exported epochs", f"{dataset.digest} {split}", f"{path}")) as target:
            samples: dict[str, int] = {}
            for shard in dict.fromkeys(row.shard for row in rows):
                with (target / shard).open("xb") as file:
                    writer = ShardWriter(file)
                    samples[shard] = 0
                    for row in rows:
                        if row.shard == shard:
                            samples[shard] += _write_record(dataset, reader, row, writer)
                            yield row.record
                    writer.close()
            write_json(target / INDEX_FILE, index_of(f"{dataset.digest} {split}", samples))


def _write_record(dataset: Dataset, reader: ShardReader, row: RecordRow, writer: ShardWriter) -> int:
    """The samples of a recording; returns how many."""
    channels = [channel for channel in CHANNELS if channel in row.channels]
    count = 0
    for batch in iter_record(dataset, row.record, channels, labels=LABELS, reader=reader):
        for item, first in enumerate(batch.first_epoch.tolist()):
            if batch.present[item].any():
                writer.write(f"{row.record}_{first + 1:05d}", _members(row, channels, batch, item, first + 1))
                count += 1
    return count


def _members(row: RecordRow, channels: list[str], batch: Batch, item: int, epoch: int) -> dict[str, bytes]:
    usable = [(number, name) for number, name in enumerate(channels) if batch.present[item, 0, number]]
    header = {
        "record": row.record,
        "subject": row.subject,
        "cohort": row.cohort,
        "epoch": epoch,
        "channels": [name for _, name in usable],
    }
    return {
        HEADER_MEMBER: json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        **{f"{name}.cls": b"%d" % int(values[item, 0]) for name, values in batch.labels.items()},
        **{channel_member(name): npy(batch.signals[item, 0, number].numpy()) for number, name in usable},
    }
