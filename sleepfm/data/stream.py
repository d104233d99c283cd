"""Infinite, stateless streams of training items: a pure function of (data set, settings, seed, position).

Any rank reads its own slice of the global positions and a resumed run goes on from its step number; there is
nothing to save. :class:`EpochStream` pools single epochs of single channels (unimodal pretraining),
:class:`SequenceStream` gives consecutive epochs of all channels of one recording (multimodal pretraining with
length 1, downstream with more).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import CHANNELS, EPOCH_SAMPLES
from sleepfm.data.ahead import ReadAhead, fetching_ahead
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.epochs import read_signals
from sleepfm.data.format import QUALITY_MEMBER
from sleepfm.data.order import Index, PassOrder, Window
from sleepfm.data.ranges import Ranges, member_ranges
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, RecordPresence, stored_labels, usable_epochs
from sleepfm.data.report import SLOW_SECONDS, ReadReport
from sleepfm.data.runs import plan_ahead
from sleepfm.data.tolerance import MAX_CORRUPT, Tolerance, TooManyCorruptError
from sleepfm.data.windows import Items, filled_up, load_windows, window_starts, with_any
from sleepfm.errors import EmptySplitError, ShardError
from sleepfm.tasks import TASKS

# Masking noise [B, ...] for items [B], the same for an item in every batch and process.
Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reading:
    """How a stream is ordered and which faults it tolerates; the first four make up the order.

    Attributes:
        seed: of the order.
        shuffle_shards: shards whose items are shuffled together.
        partitions: parts of a pass, with shards of their own, that are read side by side, see :mod:`sleepfm.data.order`.
        block: consecutive positions that one partition gives.
        max_corrupt: share of corrupt items above which reading stops.
        slow_seconds: accesses to a shard that take longer are reported.
        read_ahead: read what is wanted of this and the next window into the page cache, or the cache of a URL's shards.
        workers: processes that read a training plan, see :mod:`sleepfm.data.worker_pool`; 0 for a thread.
        max_open: files that are open at once; the reader's own number without.
    """

    seed: int = 0
    shuffle_shards: int = 8
    partitions: int = 1
    block: int = 1
    max_corrupt: float = MAX_CORRUPT
    slow_seconds: float = SLOW_SECONDS
    read_ahead: bool = True
    workers: int = 0
    max_open: int | None = None


class Stream(ABC):
    """What both streams share: order, reading ahead, replacement of corrupt items. For one thread at a time; a pickled copy
    reads in another process.

    ``report`` counts what was read, skipped and slow since the stream was made, by name of the shard; streams of one mixture
    share theirs. ``noise`` draws that of the items, where it is given.
    """

    def __init__(self, dataset: Dataset, reading: Reading, noise: Noise | None, report: ReadReport | None) -> None:
        self.dataset = dataset
        self.report = report or ReadReport(reading.slow_seconds)
        self.workers = reading.workers
        limits = {} if reading.max_open is None else {"max_open": reading.max_open}
        self._reader = ShardReader(dataset, self.report, **limits)
        self._reading = reading
        self._noise = noise
        self._tolerance = Tolerance(reading.max_corrupt)
        self._windows: OrderedDict[tuple[int, int], Items] = OrderedDict()
        self._ahead = ReadAhead(dataset, self.report, 2 * reading.partitions)
        self._asked_ahead: deque[tuple[int, int]] = deque(maxlen=4 * reading.partitions)

    def _set_units(self, shard: Index, items: Index) -> None:
        """The units that items come from, sorted by shard: the shard and the item count of each, [U]."""
        if not items.sum():
            raise EmptySplitError(f"{self.dataset.origin}: no item fits {self._describe()}; lower the requirements")
        self._shards, start = np.unique(shard, return_index=True)
        self._unit_range = np.append(start, len(shard))
        self._unit_items = items
        order = self._reading
        sizes = np.add.reduceat(items, start)
        self._order = PassOrder(sizes, order.seed, order.shuffle_shards, order.partitions, order.block)

    def __len__(self) -> int:
        """Items in one pass."""
        return self._order.total

    def tolerated(self, start: int, count: int) -> float:
        """Note that the items ``start .. start + count`` are read; how many corrupt ones are tolerated by then."""
        return self._tolerance.asked(start, count, len(self))

    def batch(self, start: int, count: int, tolerated: float | None = None) -> Batch:
        """The items at positions ``start .. start + count`` of the infinite stream.

        A corrupt item is replaced by the next intact one of its window, counted and reported. Its substitute
        depends on the seed and the position alone, and every call gives ``count`` items, so that ranks stay in step.

        Args:
            tolerated: corrupt items met by then above which reading stops, where :meth:`tolerated` was asked elsewhere.

        Raises:
            ShardError: the corrupt items met are more than ``max_corrupt`` of the items that were read, or of
                what this process reads in a pass if that is more (a missing shard is met all at once).
        """
        tolerated = self.tolerated(start, count) if tolerated is None else tolerated
        self._ahead.passed(start, self._reader)
        pieces = self._order.pieces(start, count)
        items = Items.concatenate([self._window_items(window, start + asked.start)[chosen] for window, chosen, asked in pieces])
        self.report.items += count
        batch, intact = self._load_known(items)
        for slot in np.flatnonzero(~intact).tolist():
            self._replace(batch, slot, start + slot, items, tolerated)
        positions = torch.arange(start, start + count)
        return Batch(
            batch.signals,
            batch.present,
            batch.valid,
            batch.labels,
            positions,
            [self.dataset.names[row] for row in items.record.tolist()],
            torch.from_numpy(items.first),
            self._noise(positions) if self._noise else None,
        )

    def _load_known(self, items: Items) -> tuple[Batch, NDArray[np.bool_]]:
        known = items.first >= 0
        batch, intact = self._load(Items(items.record, items.channel, np.maximum(items.first, 0)))
        return batch, intact & known

    def _replace(self, batch: Batch, slot: int, position: int, items: Items, tolerated: float) -> None:
        window, chosen, _ = next(iter(self._order.pieces(position, 1)))
        candidates = self._window_items(window, position)
        for step in range(1, window.size):
            self.report.skipped += 1
            if self.report.skipped > tolerated:
                raise self.too_many()
            place = (chosen.start + step) % window.size
            substitute = candidates[slice(place, place + 1)]
            loaded, intact = self._load_known(substitute)
            if intact.all():
                batch.signals[slot] = loaded.signals[0]
                batch.present[slot] = loaded.present[0]
                batch.valid[slot] = loaded.valid[0]
                for name, values in loaded.labels.items():
                    batch.labels[name][slot] = values[0]
                items.record[slot], items.first[slot] = substitute.record[0], substitute.first[0]
                return
        raise self.too_many("no other item of their shards is intact")

    def too_many(self, why: str = "") -> TooManyCorruptError:
        """The error that ends reading, of what :attr:`report` holds; ``why``, unless it is the share that is tolerated."""
        why = why or f"limit {100 * self._tolerance.share:g} %, data.max_corrupt"
        names = ", ".join(sorted(name for name, trouble in self.report.shards.items() if trouble.faults)[:5])
        message = (
            f"{self.dataset.origin}: {self.report.skipped:,} of {self.report.items:,} items are corrupt ({why}); "
            f"shards: {names}; last: {self.report.last_fault}; restore these shards, "
            f"`sleepfm verify {self.dataset.origin}` lists all faults"
        )
        return TooManyCorruptError(message, why)

    def _window_items(self, window: Window, position: int) -> Items:
        key = (window.pass_number, window.index)
        if key not in self._windows:
            units = self._units(window)
            if self._reading.read_ahead:
                left = self._order.leaves(position)
                self._read_ahead(window, left)
                self._read_ahead(self._order.ahead(position), self._order.leaves(left))
            order = self._order.shuffle(window)
            while len(self._windows) >= 2 * self._reading.partitions:
                self._windows.popitem(last=False)
            self._windows[key] = self._expand(units)[order]
        self._windows.move_to_end(key)
        return self._windows[key]

    def _read_ahead(self, window: Window, until: int) -> None:
        key = (window.pass_number, window.index)
        if key not in self._asked_ahead:
            self._asked_ahead.append(key)
            self._ahead.ask(self._shards[window.shards].tolist(), partial(self._ranges, self._units(window)), until)

    def _units(self, window: Window) -> Index:
        return np.concatenate([np.arange(self._unit_range[shard], self._unit_range[shard + 1]) for shard in window.shards])

    @abstractmethod
    def _describe(self) -> str:
        """The settings, for an error."""

    @abstractmethod
    def _ranges(self, units: Index) -> Ranges:
        """All that is read of ``units``. Called from another thread."""

    @abstractmethod
    def _expand(self, units: Index) -> Items:
        """All items of ``units``, in order; as many as ``_set_units`` was told."""

    @abstractmethod
    def _load(self, items: Items) -> tuple[Batch, NDArray[np.bool_]]:
        """The items as a batch (positions not filled in), and which of them are intact."""


class EpochStream(Stream):
    """Single epochs of single channels, pooled over ``channels``: ``signals`` [B, 3000], no labels."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        channels: Sequence[str],
        reading: Reading = Reading(),
        require_good_quality: bool = True,
        noise: Noise | None = None,
        report: ReadReport | None = None,
    ) -> None:
        """``require_good_quality`` leaves out epochs with a flag that the data set excludes.

        Raises:
            DatasetError: the split holds no such epoch.
        """
        super().__init__(dataset, reading, noise, report)
        self.split = split
        self.channels = tuple(channels)
        self._good = require_good_quality
        rows = dataset.select(split, channels)
        numbers = np.array([CHANNELS.index(channel) for channel in channels])
        at, which = np.nonzero(dataset.present[np.ix_(rows, numbers)])
        record, channel = rows[at], numbers[which]
        items = dataset.usable[record, channel] if self._good else dataset.n_epochs[record]
        kept = items > 0
        self._record, self._channel = record[kept], channel[kept]
        self._set_units(dataset.shard_of[self._record].astype(np.int64), items[kept])

    def _describe(self) -> str:
        return f"split {self.split!r}, channels {', '.join(self.channels)}, good quality {self._good}"

    def _ranges(self, units: Index) -> Ranges:
        return plan_ahead(self.dataset, self._record[units], self._channel[units])

    def _expand(self, units: Index) -> Items:
        counts = self._unit_items[units]
        if self._good:
            self._reader.have(member_ranges(self.dataset, np.unique(self._record[units]), (QUALITY_MEMBER,)))
            usable: dict[int, NDArray[np.bool_] | None] = {}
            parts = []
            for record, channel, count in zip(
                self._record[units].tolist(), self._channel[units].tolist(), counts.tolist(), strict=True
            ):
                if record not in usable:
                    usable[record] = self._usable(record)
                parts.append(self._good_epochs(usable[record], record, channel, count))
            first = np.concatenate(parts)
        else:
            first = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Items(np.repeat(self._record[units], counts), np.repeat(self._channel[units], counts), first)

    def _usable(self, record: int) -> NDArray[np.bool_] | None:
        try:
            return usable_epochs(self.dataset, self._reader, record)
        except ShardError as error:
            self._reader.fault(record, str(error))
            return None

    def _good_epochs(self, usable: NDArray[np.bool_] | None, record: int, channel: int, count: int) -> Index:
        """[count] epochs of a channel, all -1 if it cannot be said which."""
        if usable is not None:
            good = np.flatnonzero(usable[self.dataset.channel_row[record, channel]])
            if len(good) == count:
                return good
            name = CHANNELS[channel]
            self._reader.fault(
                record, f"{self.dataset.names[record]}: quality of {name} tells {len(good)} good epochs, the manifest {count}"
            )
        return np.full(count, -1, np.int64)

    def _load(self, items: Items) -> tuple[Batch, NDArray[np.bool_]]:
        size = len(items.record)
        one = np.ones(size, np.int64)
        signals = np.empty((size, EPOCH_SAMPLES), np.float32)
        intact = read_signals(self.dataset, self._reader, items.record, items.channel, items.first, one, np.arange(size), signals)
        true = torch.ones(size, 1, dtype=torch.bool)
        return Batch(torch.from_numpy(signals), true, true.clone(), {}, torch.empty(0), [], torch.empty(0)), intact


class SequenceStream(Stream):
    """``length`` consecutive epochs of one recording, all ``channels``: ``signals`` [B, L, C, 3000].

    Windows start every ``stride`` epochs (default: ``length``); a last one that ends with the recording covers
    what is left over. A recording shorter than ``length`` gives one window, padded at its end. ``present`` says
    which channels are usable in each epoch; recordings in which none ever is are not items. In the place of a window
    without any usable channel stands one of the same recording that has some, so that nothing is learnt from zeros
    and the number of items is told by the manifest alone. Labels of epochs without a usable channel are -1.

    ``labelled_only`` leaves out windows in which no usable epoch carries ``target`` (after ``label_fraction``, see
    :class:`~sleepfm.data.record_labels.RecordLabels`). Respiratory labels are those of the shards: -1 where events were
    not scored or the epoch has no stage, 0 or 1 elsewhere, wake included.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        channels: Sequence[str],
        length: int = 1,
        stride: int | None = None,
        reading: Reading = Reading(),
        label_fraction: float = 1.0,
        label_seed: int = 0,
        labels: Sequence[str] | None = None,
        target: str = "stage",
        labelled_only: bool = False,
        noise: Noise | None = None,
        report: ReadReport | None = None,
        label_rows: frozenset[int] | None = None,
    ) -> None:
        """``labels`` are those of every task by default, ``()`` none; with ``label_rows`` other recordings have none.

        Raises:
            DatasetError: the split holds no such window.
            ShardError: with ``labelled_only``, labels cannot be read: which windows there are must not depend on
                what this process can read now.
        """
        super().__init__(dataset, reading, noise, report)
        self.split = split
        self.channels = tuple(channels)
        self.length = length
        self.stride = stride or length
        self._numbers = np.array([CHANNELS.index(channel) for channel in channels])
        self._label_names = tuple(TASKS if labels is None else labels)
        self._labels = RecordLabels(dataset, self._reader, self._label_names, target, label_fraction, label_seed, rows=label_rows)
        self._presence = RecordPresence(dataset, self._reader, self._numbers)
        self._labelled_only = labelled_only
        self._stored = stored_labels((*self._label_names, *([target] if labelled_only else [])))
        self._record = dataset.select(split, channels)
        self._record = self._record[dataset.usable[np.ix_(self._record, self._numbers)].any(axis=1)]
        if labelled_only:
            ahead = fetching_ahead(dataset, self._record.tolist(), (), (target,), self._reader)
            items = np.array([len(self._starts(row)) for row in ahead])
            self._record, items = self._record[items > 0], items[items > 0]
        else:
            items = 1 + np.ceil(np.maximum(dataset.n_epochs[self._record] - length, 0) / self.stride).astype(int)
        self._set_units(dataset.shard_of[self._record].astype(np.int64), items)

    def _describe(self) -> str:
        return (
            f"split {self.split!r}, channels {', '.join(self.channels)}, length {self.length}, "
            f"labelled only {self._labelled_only}"
        )

    def _starts(self, record: int) -> Index:
        starts = window_starts(int(self.dataset.n_epochs[record]), self.length, self.stride)
        counted: NDArray[np.bool_] = np.asarray(self._presence.of(record).any(axis=1))
        if self._labelled_only:
            return starts[with_any(starts, self.length, counted & self._labels.labelled(record))]
        return filled_up(starts, with_any(starts, self.length, counted))

    def _ranges(self, units: Index) -> Ranges:
        record, column = np.nonzero(self.dataset.present[self._record[units][:, None], self._numbers])
        return plan_ahead(self.dataset, self._record[units][record], self._numbers[column], self._stored)

    def _expand(self, units: Index) -> Items:
        counts = self._unit_items[units]
        self._reader.have(member_ranges(self.dataset, self._record[units], (QUALITY_MEMBER, *self._stored)))
        starts = []
        for record, count in zip(self._record[units].tolist(), counts.tolist(), strict=True):
            try:
                starts.append(self._starts(record))
            except ShardError as error:
                self._reader.fault(record, str(error))
                starts.append(np.full(count, -1, np.int64))
        record = np.repeat(self._record[units], counts)
        return Items(record, np.zeros_like(record), np.concatenate(starts))

    def _load(self, items: Items) -> tuple[Batch, NDArray[np.bool_]]:
        labels = self._labels if self._label_names else None
        batch, intact = load_windows(
            self.dataset, self._reader, self._presence, labels, self._label_names, self._numbers, items, self.length
        )
        unseen = ~batch.present.any(dim=2)
        for values in batch.labels.values():
            values[unseen] = -1
        return batch, intact
