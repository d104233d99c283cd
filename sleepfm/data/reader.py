"""Epochs out of shards: positioned reads into one buffer, every epoch checked against its CRC-32.

Positioned reads rather than memory maps: a shard that is cut short while it is in use gives a short read
instead of a SIGBUS, and pages of the cohort do not count as memory of the process.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS
from sleepfm.data.cache import CachedShard
from sleepfm.data.dataset import Dataset, ShardFile
from sleepfm.data.format import (
    CRC_BYTES,
    CRC_MEMBER,
    SAMPLE_BYTES,
    SHARD_FOLDER,
)
from sleepfm.data.ranges import Index, Ranges, merged, sample_ranges, together
from sleepfm.data.report import ReadReport
from sleepfm.data.runs import Runs, plan_runs, signal_ranges
from sleepfm.errors import ShardError

# Ranges of a disk this near are read ahead in one go; what a sample holds beside its signals takes less.
NEAR_BYTES = 2**16
# Samples whose checksums are kept, some 2 kB each: those of a few windows of shards, whose epochs are read in random order.
_SAMPLES_KEPT = 4096


class ShardReader:
    """Reads from the shards of a data set, keeping at most ``max_open`` files open. For one thread at a time.

    Of shards behind a URL, what is read and not in the cache is fetched: whole samples of a channel, whose other epochs are
    usually read soon. What is not as it was written, or slow, goes into ``report``.
    """

    def __init__(self, dataset: Dataset, report: ReadReport | None = None, max_open: int | None = None) -> None:
        self.dataset = dataset
        self._max_open = max_open or 64
        self._open: OrderedDict[int, ShardFile | CachedShard] = OrderedDict()
        self._checksums: dict[int, memoryview] = {}
        # Runs that fail and may be fetched once more, before they are reported.
        self._doubted: list[int] | None = None
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
        pieces = list(zip(shards.tolist(), np.split(order, starts[1:]), strict=True))
        absent = self._fetch_absent(runs, pieces) if self.dataset.remote is not None else {}
        for shard, chosen in pieces:
            with self.report.timed(self.dataset.shard_name(shard)):
                try:
                    handle = self._handle(shard)
                except ShardError as error:
                    intact[chosen] = False
                    self._fault(shard, str(error))
                    continue
                if shard in absent:
                    handle, chosen = self._fetched(shard, runs, chosen, intact)
                self._doubted = [] if self.dataset.remote is not None else None
                self._read_shard(shard, handle, runs, chosen, content, intact)
                doubted, self._doubted = self._doubted, None
                if doubted:
                    again = self._fetch_again(shard, runs, np.array(doubted))
                    intact[again] = True
                    self._read_shard(shard, self._handle(shard), runs, again, content, intact)
        return intact

    def _fetch_absent(self, runs: Runs, pieces: list[tuple[int, Index]]) -> dict[int, Index]:
        """Fetch what is not in the cache of the runs of each shard; of which these are, by shard."""
        absent, bounds = {}, self._bounds(runs)
        for shard, chosen in pieces:
            # What cannot be opened is met again when it is read.
            with suppress(ShardError):
                there = _held(self._current(shard), bounds, chosen)
                if not there.all():
                    absent[shard] = chosen[~there]
        if absent:
            self.fetch(self._whole_samples(runs, np.concatenate(list(absent.values()))))
        return absent

    def _fetched(self, shard: int, runs: Runs, chosen: Index, intact: NDArray[np.bool_]) -> tuple[int, Index]:
        """A handle of a shard, and those of its runs ``chosen`` whose bytes are there; the others are reported."""
        failed: dict[int, ShardError] = {}
        bounds = self._bounds(runs)
        there = _held(self._cached(shard), bounds, chosen)
        if not there.all():
            failed = self.fetch(self._whole_samples(runs, chosen[~there]))
            there = _held(self._cached(shard), bounds, chosen)
        if not there.all():
            intact[chosen[~there]] = False
            self._fault(shard, str(failed.get(shard, f"{self.dataset.shard_name(shard)}: could not be fetched")))
        return self._handle(shard), chosen[there]

    def _fetch_again(self, shard: int, runs: Runs, chosen: Index) -> Index:
        """Fetch runs that fail their checks once more, but for those that were; the runs, to be checked again."""
        remote, file = self.dataset.remote, self._cached(shard)
        assert remote is not None
        name = self.dataset.shard_paths[shard].name
        fresh = chosen[[remote.doubt(name, offset) for offset in runs.offset[chosen].tolist()]]
        ranges = together(signal_ranges(Runs(*(field[fresh] for field in runs))), self._checksums_of(runs, fresh))
        for begin, end in zip(ranges.begin.tolist(), ranges.end.tolist(), strict=True):
            file.mark(begin, end, present=False)
        if len(fresh):
            self.fetch(ranges)
        for sample in runs.sample[chosen].tolist():
            self._checksums.pop(sample, None)
        return chosen

    def _bounds(self, runs: Runs) -> list[tuple[int, int, int, int]]:
        """Of each run, where its signal begins and ends, and where the checksums of its sample do."""
        signals, checks = signal_ranges(runs), self._checksums_of(runs, np.arange(len(runs.shard)))
        return list(zip(*(field.tolist() for field in (*signals[1:], *checks[1:])), strict=True))

    def _checksums_of(self, runs: Runs, chosen: Index) -> Ranges:
        record = runs.record[chosen]
        return sample_ranges(self.dataset, record, runs.first[chosen] // self.dataset.segment_epochs, CRC_MEMBER)

    def _whole_samples(self, runs: Runs, chosen: Index) -> Ranges:
        """The channels of the samples that runs lie in, with their checksums."""
        size = self.dataset.segment_epochs
        found = np.unique(np.stack([runs.record[chosen], runs.channel[chosen], runs.first[chosen] // size]), axis=1)
        record, channel, segment = found
        count = np.minimum(self.dataset.n_epochs[record] - segment * size, size)
        whole = plan_runs(self.dataset, record, channel, segment * size, count, np.zeros_like(record))
        return together(signal_ranges(whole), self._checksums_of(whole, np.arange(len(record))))

    def fetch(self, ranges: Ranges, at_once: bool = True) -> dict[int, ShardError]:
        """Have ``ranges`` of shards behind a URL in the cache; why that is not to be had, by shard. See :class:`RemoteShards`."""
        remote = self.dataset.remote
        if remote is None or not len(ranges.shard):
            return {}
        shard, begin, end = merged(ranges, 0)
        shards, starts = np.unique(shard, return_index=True)
        number = {self.dataset.shard_paths[one].name: int(one) for one in shards}
        sizes = self.dataset.shard_bytes[shards].tolist()
        parts = zip(sizes, np.split(begin, starts[1:]), np.split(end, starts[1:]), strict=True)
        into: dict[str, CachedShard] = {}
        if at_once:
            for name, one in number.items():
                # What cannot be opened is tried again by what fetches, which says why.
                with suppress(ShardError):
                    into[name] = self._cached(one)
        failed = {}
        for name, found in remote.fetch(dict(zip(number, parts, strict=True)), into, self._watched).items():
            if isinstance(found, ShardError):
                failed[number[name]] = found
            elif name in into:
                self._open[number[name]] = found
        return failed

    def have(self, ranges: Ranges) -> None:
        """Fetch, together, what the cache lacks of ``ranges`` of shards behind a URL, before they are read piece by piece.

        What cannot be had is no error here: it is met again when it is read.
        """
        if self.dataset.remote is None:
            return
        lacking = np.zeros(len(ranges.shard), np.bool_)
        with suppress(ShardError):
            for number, (shard, begin, end) in enumerate(zip(*(field.tolist() for field in ranges), strict=True)):
                lacking[number] = not self._current(shard).holds(begin, end)
        self.fetch(Ranges(*(field[lacking] for field in ranges)))

    def _watched(self, name: str) -> AbstractContextManager[None]:
        return self.report.timed(f"{self.dataset.origin}/{SHARD_FOLDER}/{name}", "fetch")

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

    def read_bytes(self, shard: int, offset: int, size: int, anew: bool = False) -> bytes:
        """``size`` bytes of a shard, behind a URL fetched ``anew``. Raises :class:`ShardError` when it cannot give them."""
        name = self.dataset.shard_name(shard)
        with self.report.timed(name):
            handle = self._handle(shard)
            if self.dataset.remote is not None:
                handle = self._bytes_fetched(shard, offset, offset + size, anew)
            try:
                content = os.pread(handle, size, offset)
            except OSError as error:
                raise ShardError(f"{name}: reading failed at byte {offset} ({error.strerror})") from error
        if len(content) != size:
            raise ShardError(f"{name}: ends before byte {offset + size}; restore it or build again")
        return content

    def _bytes_fetched(self, shard: int, begin: int, end: int, anew: bool) -> int:
        """A handle of a shard that has these bytes."""
        if anew:
            self._current(shard).mark(begin, end, present=False)
        if not self._current(shard).holds(begin, end):
            for error in self.fetch(Ranges(*np.array([[shard], [begin], [end]]))).values():
                raise error
        return self._handle(shard)

    def read_ahead(self, ranges: Ranges) -> None:
        """Have ``ranges`` of shards on a disk in the page cache.

        What cannot be had is no error here: it is met again when it is needed.
        """
        for number, first, last in zip(*(field.tolist() for field in merged(ranges, NEAR_BYTES)), strict=True):
            with suppress(ShardError, OSError), self.report.timed(self.dataset.shard_name(number), "read ahead"):
                os.posix_fadvise(self._handle(number), first, last - first, os.POSIX_FADV_WILLNEED)

    def release(self, shards: Iterable[int]) -> None:
        """Close ``shards``, which are not read soon: those behind a URL may then be removed from the cache."""
        for shard in shards:
            self._open.pop(shard, None)

    def fault(self, record: int, reason: str) -> None:
        """Report that something of the recording in row ``record`` cannot be used."""
        self._fault(int(self.dataset.shard_of[record]), reason)

    def close(self) -> None:
        """Close all files."""
        self._open.clear()

    def _handle(self, shard: int) -> int:
        return self._file(shard).handle

    def _file(self, shard: int) -> ShardFile | CachedShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= self._max_open:
            self._open.popitem(last=False)
        self._open[shard] = self.dataset.shard_file(shard)
        return self._open[shard]

    def _cached(self, shard: int) -> CachedShard:
        file = self._file(shard)
        assert isinstance(file, CachedShard)
        return file

    def _current(self, shard: int) -> CachedShard:
        """What the cache has of a shard now: another process may have removed what is open here."""
        if self._cached(shard).removed:
            self.release([shard])
        return self._cached(shard)

    def _bad(self, shard: int, runs: Runs, run: int, number: int, reason: str) -> bool:
        """Report epoch ``number`` of a run by the names that tell a person where to look; returns False."""
        if self._doubted is not None:
            self._doubted.append(run)
            return False
        epoch = int(runs.first[run]) + number
        record, channel = self.dataset.names[int(runs.record[run])], CHANNELS[int(runs.channel[run])]
        sample = f"{record}_{epoch // self.dataset.segment_epochs:04d}"
        name = self.dataset.shard_name(shard)
        self._fault(shard, f"{name}: sample {sample}, {channel}, epoch {epoch + 1} of {record}: {reason}")
        return False

    def _fault(self, shard: int, reason: str) -> None:
        self.report.fault(self.dataset.shard_name(shard), reason)


def _held(file: CachedShard, bounds: list[tuple[int, int, int, int]], chosen: Index) -> NDArray[np.bool_]:
    """Which of the runs ``chosen`` with ``bounds`` are in the cache, with their checksums."""
    holds, these = file.holds, map(bounds.__getitem__, chosen.tolist())
    return np.array([holds(begin, end) and holds(first, last) for begin, end, first, last in these], np.bool_)
