"""Epochs out of shards: positioned reads into one buffer, every epoch checked against its CRC-32.

Positioned reads rather than memory maps: a shard that is cut short while it is in use gives a short read
instead of a SIGBUS, and pages of the cohort do not count as memory of the process.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS, EPOCH_SAMPLES
from sleepfm.data.dataset import Dataset, check_shard_size
from sleepfm.data.format import CRC_BYTES, CRC_MEMBER, EPOCH_BYTES, channel_member
from sleepfm.errors import ShardError

Index = NDArray[np.int64]


class Runs(NamedTuple):
    """Pieces of consecutive epochs of one channel that lie together in one shard, [N] each."""

    shard: Index
    offset: Index
    crc_offset: Index
    row: Index
    epochs: Index
    owner: Index


def plan_runs(dataset: Dataset, record: Index, channel: Index, first: Index, count: Index, row: Index) -> Runs:
    """Where the epochs ``first .. first + count`` of (record, channel) lie, split at sample borders.

    ``channel`` indexes :data:`CHANNELS` and must be present in the record. ``row`` is the row of the output
    that the first epoch goes to; ``owner`` of a run is the index of the request it belongs to.
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
    epochs_of_segment = np.minimum(dataset.n_epochs[record[owner]] - segment * size, size)
    sample = dataset.first_segment[record[owner]] + segment
    offset = np.empty(len(owner), np.int64)
    for number in np.unique(channel):
        chosen = channel[owner] == number
        offset[chosen] = dataset.offsets(channel_member(CHANNELS[number]))[sample[chosen]]
    line = dataset.channel_row[record[owner], channel[owner]].astype(np.int64)
    return Runs(
        shard=dataset.shard_of[record[owner]].astype(np.int64),
        offset=offset + inside * EPOCH_BYTES,
        crc_offset=dataset.offsets(CRC_MEMBER)[sample] + (line * epochs_of_segment + inside) * CRC_BYTES,
        row=row[owner] + begin - first[owner],
        epochs=end - begin,
        owner=owner,
    )


class ShardReader:
    """Reads from the shards of a data set, keeping at most ``max_open`` files open. For one thread at a time.

    ``corrupt`` counts the runs that were not what was written; ``last_fault`` says why the last one was not.
    """

    def __init__(self, dataset: Dataset, max_open: int = 64) -> None:
        self._dataset = dataset
        self._max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()
        self.corrupt = 0
        self.last_fault = ""

    def read_epochs(self, runs: Runs, out: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Fill rows of ``out`` [rows, 3000] with the epochs of ``runs``; returns which runs are intact, [N]."""
        intact = np.ones(len(runs.shard), np.bool_)
        lines = memoryview(out.data).cast("B")
        crc32, pread, preadv = zlib.crc32, os.pread, os.preadv
        order = np.lexsort((runs.offset, runs.shard))
        previous, handle = -1, -1
        for run, shard, offset, crc_offset, row, count in zip(
            order.tolist(),
            runs.shard[order].tolist(),
            runs.offset[order].tolist(),
            runs.crc_offset[order].tolist(),
            runs.row[order].tolist(),
            runs.epochs[order].tolist(),
            strict=True,
        ):
            if shard != previous:
                previous, handle = shard, self._handle_or_fault(shard)
            if handle < 0:
                intact[run] = False
                continue
            at = row * EPOCH_BYTES
            try:
                filled = preadv(handle, [lines[at : at + count * EPOCH_BYTES]], offset)
                stored = pread(handle, count * CRC_BYTES, crc_offset)
            except OSError as error:
                intact[run] = self._fault(shard, f"read failed at byte {offset} ({error.strerror})")
                continue
            if filled != count * EPOCH_BYTES or len(stored) != count * CRC_BYTES:
                intact[run] = self._fault(shard, f"ends before byte {offset + count * EPOCH_BYTES}")
                continue
            for number in range(count):
                begin = at + number * EPOCH_BYTES
                check = crc32(lines[begin : begin + EPOCH_BYTES])
                if check != int.from_bytes(stored[number * CRC_BYTES : (number + 1) * CRC_BYTES], "little"):
                    where = offset + number * EPOCH_BYTES
                    intact[run] = self._fault(shard, f"the epoch at byte {where} fails its checksum")
                    break
        return intact

    def read_bytes(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard. Raises :class:`ShardError` when it cannot give them."""
        content = os.pread(self._handle(shard), size, offset)
        if len(content) != size:
            raise ShardError(f"{self._dataset.shard_paths[shard]}: ends before byte {offset + size}; restore it or build again")
        return content

    def close(self) -> None:
        """Close all files."""
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def __del__(self) -> None:
        self.close()

    def _handle(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = check_shard_size(self._dataset, shard)
        while len(self._open) >= self._max_open:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def _handle_or_fault(self, shard: int) -> int:
        try:
            return self._handle(shard)
        except ShardError as error:
            self.last_fault = str(error)
            self.corrupt += 1
            return -1

    def _fault(self, shard: int, reason: str) -> bool:
        self.corrupt += 1
        self.last_fault = f"{self._dataset.shard_paths[shard]}: {reason}"
        return False


def scaled(buffer: NDArray[np.int16], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """int16 [N, 3000] times a scale per row [N] as float32 [N, 3000]."""
    assert buffer.shape[1] == EPOCH_SAMPLES
    return np.multiply(buffer, scale[:, None], dtype=np.float32)
