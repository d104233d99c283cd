"""Epochs out of shards: positioned reads into one buffer, every epoch checked against its CRC-32.

Positioned reads rather than memory maps: a shard that is cut short while it is in use gives a short read
instead of a SIGBUS, and pages of the cohort do not count as memory of the process.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CRC_BYTES, CRC_MEMBER, SAMPLE_BYTES, channel_member, epoch_bytes
from sleepfm.data.report import ReadReport
from sleepfm.errors import ShardError

Index = NDArray[np.int64]

# Ranges this near are read ahead in one go; what a sample holds beside its signals takes less.
NEAR_BYTES = 2**16
# Samples whose checksums are kept, some 2 kB each: those of a few windows of shards, whose epochs are read in random order.
_SAMPLES_KEPT = 4096


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


class Ranges(NamedTuple):
    """Bytes ``begin .. end`` of shards, [N] each, N > 0."""

    shard: Index
    begin: Index
    end: Index


def plan_ahead(dataset: Dataset, record: Index, channel: Index) -> Ranges:
    """The bytes of whole recordings, a channel each; labels, quality and checksums, which lie together, included."""
    run = plan_runs(dataset, record, channel, np.zeros_like(record), dataset.n_epochs[record], np.zeros_like(record))
    crc = dataset.offsets(CRC_MEMBER)[run.sample]
    return Ranges(
        np.tile(run.shard, 2),
        np.concatenate([run.offset, crc]),
        np.concatenate([run.offset + run.epochs * run.epoch_bytes, crc + NEAR_BYTES]),
    )


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


class ShardReader:
    """Reads from the shards of a data set, keeping at most ``max_open`` files open. For one thread at a time.

    What is not as it was written, or slow, goes into ``report``.
    """

    def __init__(self, dataset: Dataset, report: ReadReport | None = None, max_open: int | None = None) -> None:
        self.dataset = dataset
        # A shard that the cache has removed keeps its place on the disk as long as it is open.
        self._max_open = max_open or (64 if dataset.remote is None else 16)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._checksums: dict[int, memoryview] = {}
        self.report = report or ReadReport()

    def __reduce__(self) -> tuple[object, ...]:
        """A copy elsewhere opens its own files."""
        return ShardReader, (self.dataset, self.report, self._max_open)

    def read_epochs(self, runs: Runs, out: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Fill ``out``, flat, with the epochs of ``runs``; returns which runs are intact, [N]."""
        intact = np.ones(len(runs.shard), np.bool_)
        content = memoryview(out.data).cast("B")
        order = np.lexsort((runs.offset, runs.shard))
        shards, starts = np.unique(runs.shard[order], return_index=True)
        for shard, chosen in zip(shards.tolist(), np.split(order, starts[1:]), strict=True):
            with self.report.timed(self.dataset.shard_name(shard)):
                try:
                    handle = self._handle(shard)
                except ShardError as error:
                    intact[chosen] = False
                    self._fault(shard, str(error))
                    continue
                self._read_shard(shard, handle, runs, chosen, content, intact)
        return intact

    def _read_shard(
        self, shard: int, handle: int, runs: Runs, chosen: Index, content: memoryview, intact: NDArray[np.bool_]
    ) -> None:
        """The runs ``chosen``, by their offsets, all in one shard."""
        crc32, preadv = zlib.crc32, os.preadv
        for run, offset, sample, crc, at, count, each in zip(
            chosen.tolist(),
            runs.offset[chosen].tolist(),
            runs.sample[chosen].tolist(),
            runs.crc[chosen].tolist(),
            (runs.place[chosen] * SAMPLE_BYTES).tolist(),
            runs.epochs[chosen].tolist(),
            runs.epoch_bytes[chosen].tolist(),
            strict=True,
        ):
            size = count * each
            target = content[at : at + size]
            try:
                filled = preadv(handle, (target,), offset)
                stored = self._checksums.get(sample) or self._read_checksums(handle, sample, int(runs.record[run]))
            except OSError as error:
                intact[run] = self._bad(shard, runs, run, 0, f"reading failed at byte {offset} ({error.strerror})")
                continue
            if filled != size or stored is None:
                intact[run] = self._bad(shard, runs, run, 0, f"the shard ends before byte {offset + size}")
                continue
            for number in range(count):
                epoch = target[number * each : (number + 1) * each] if count > 1 else target
                if crc32(epoch) != stored[crc + number]:
                    # They may be what is wrong, and right when they are read again.
                    self._checksums.pop(sample, None)
                    where = f"its bytes from {offset + number * each} fail their checksum"
                    intact[run] = self._bad(shard, runs, run, number, where)
                    break

    def _read_checksums(self, handle: int, sample: int, record: int) -> memoryview | None:
        """All checksums of a sample, channel by channel; None where the shard ends before them.

        They are kept: of a sample whose epochs are read in random order they are read once.
        """
        dataset = self.dataset
        begin = (sample - int(dataset.first_segment[record])) * dataset.segment_epochs
        epochs = min(int(dataset.n_epochs[record]) - begin, dataset.segment_epochs)
        size = int(dataset.present[record].sum()) * epochs * CRC_BYTES
        content = os.pread(handle, size, int(dataset.offsets(CRC_MEMBER)[sample]))
        if len(content) != size:
            return None
        if len(self._checksums) >= _SAMPLES_KEPT:
            # The oldest half: an order of use would cost more at each epoch than reading some again.
            for old in list(self._checksums)[: _SAMPLES_KEPT // 2]:
                del self._checksums[old]
        self._checksums[sample] = found = memoryview(content).cast("I")
        return found

    def read_bytes(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard. Raises :class:`ShardError` when it cannot give them."""
        name = self.dataset.shard_name(shard)
        with self.report.timed(name):
            try:
                content = os.pread(self._handle(shard), size, offset)
            except OSError as error:
                raise ShardError(f"{name}: reading failed at byte {offset} ({error.strerror})") from error
        if len(content) != size:
            raise ShardError(f"{name}: ends before byte {offset + size}; restore it or build again")
        return content

    def read_ahead(self, ranges: Ranges) -> None:
        """Have ``ranges`` in the page cache; for a data set behind a URL this fetches the shards.

        What cannot be had is no error here: it is met again when it is needed.
        """
        order = np.lexsort((ranges.begin, ranges.shard))
        shard, begin, end = ranges.shard[order], ranges.begin[order], ranges.end[order]
        apart = np.ones(len(order), np.bool_)
        apart[1:] = (shard[1:] != shard[:-1]) | (begin[1:] > end[:-1] + NEAR_BYTES)
        starts = np.flatnonzero(apart)
        for number, first, last in zip(
            shard[starts].tolist(), begin[starts].tolist(), np.maximum.reduceat(end, starts).tolist(), strict=True
        ):
            with suppress(ShardError, OSError), self.report.timed(self.dataset.shard_name(number), "read ahead"):
                os.posix_fadvise(self._handle(number), first, last - first, os.POSIX_FADV_WILLNEED)

    def fault(self, record: int, reason: str) -> None:
        """Report that something of the recording in row ``record`` cannot be used."""
        self._fault(int(self.dataset.shard_of[record]), reason)

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
        while len(self._open) >= self._max_open:
            os.close(self._open.popitem(last=False)[1])
        for last in (False, True):
            path = self.dataset.shard_file(shard)
            try:
                self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                # Another process may have removed it from the cache just now: then it is fetched again.
                if last or self.dataset.remote is None:
                    raise ShardError(f"{path}: cannot read shard ({error.strerror}); restore it or build again") from error
        return self._open[shard]

    def _bad(self, shard: int, runs: Runs, run: int, number: int, reason: str) -> bool:
        """Report epoch ``number`` of a run by the names that tell a person where to look; returns False."""
        epoch = int(runs.first[run]) + number
        record, channel = self.dataset.names[int(runs.record[run])], CHANNELS[int(runs.channel[run])]
        sample = f"{record}_{epoch // self.dataset.segment_epochs:04d}"
        name = self.dataset.shard_name(shard)
        self._fault(shard, f"{name}: sample {sample}, {channel}, epoch {epoch + 1} of {record}: {reason}")
        return False

    def _fault(self, shard: int, reason: str) -> None:
        self.report.fault(self.dataset.shard_name(shard), reason)
