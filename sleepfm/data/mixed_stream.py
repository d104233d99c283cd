"""Several streams as one, whose items come from them in the order of an :class:`~sleepfm.data.interleave.Interleave`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleepfm.data.batch import Batch
from sleepfm.data.interleave import Interleave
from sleepfm.data.order import Index
from sleepfm.data.prefetch import Source
from sleepfm.data.report import ReadReport
from sleepfm.data.stream import Noise, Reading, Stream
from sleepfm.data.tolerance import Tolerance, TooManyCorruptError

Parts = list[tuple[Index, Batch]]


@dataclass(frozen=True)
class Stretch:
    """Positions from ``begin`` on, in which the mixture is the same.

    Attributes:
        begin: the first of them.
        counts: items that a pass takes from each source, by the key of the source.
    """

    begin: int
    counts: dict[str, int]


class MixedStream:
    """An infinite, stateless stream over ``streams``, by the key of each source; items of all have the same shapes.

    ``names`` are those of the sources, in the order of ``Batch.source``. Positions and noise are those of the mixture.
    ``history`` are the stretches before the present one, where the mixture was another: a source goes on where it was.
    """

    def __init__(
        self,
        streams: dict[str, Source],
        names: Sequence[str],
        counts: Sequence[int],
        seed: int,
        noise: Noise | None = None,
        partitions: int = 1,
        block: int = 1,
    ) -> None:
        self.names = tuple(names)
        self._keys, self._streams = list(streams), list(streams.values())
        self._seed, self._noise, self._partitions, self._block = seed, noise, partitions, block
        self._interleave = Interleave(counts, seed)
        self._begin, self._offsets = 0, np.zeros((partitions, len(counts)), np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Items that a pass of the mixture takes from each source, by its key."""
        return dict(zip(self._keys, self._interleave.counts, strict=True))

    def __len__(self) -> int:
        """Items in one pass of the mixture."""
        return self._interleave.total

    def goes_on_after(self, history: Sequence[Stretch], begin: int) -> None:
        """From position ``begin`` on the order is this mixture's, and each source goes on behind what ``history`` has taken of it.

        ``begin`` and those of ``history`` are at the borders of steps. A position before ``begin`` is not this mixture's to give.
        """
        offsets = np.zeros_like(self._offsets)
        ends = [*(stretch.begin for stretch in history[1:]), begin]
        for stretch, end in zip(history, ends, strict=True):
            before = Interleave([*stretch.counts.values()], self._seed)
            for lane in range(self._partitions):
                passed = before.taken((end - stretch.begin) // self._partitions, lane)
                for key, count in zip(stretch.counts, passed, strict=True):
                    if key in self._keys:
                        offsets[lane, self._keys.index(key)] += count
        self._begin, self._offsets = begin, offsets

    def batch(self, start: int, count: int) -> Batch:
        """The items at positions ``start .. start + count``, with their ``source``."""
        return self._joined(start, count, lambda stream, first, length: stream.batch(first, length))

    def _joined(self, start: int, count: int, read: Callable[[Any, int, int], Batch]) -> Batch:
        source, place = self._places(start, count)
        parts: Parts = []
        for number in np.unique(source).tolist():
            rows = np.flatnonzero(source == number)
            for run in np.split(rows, np.flatnonzero(np.diff(place[rows]) != 1) + 1):
                parts.append((run, read(self._streams[number], int(place[run[0]]), len(run))))
        positions = torch.arange(start, start + count)
        record = [""] * count
        for rows, part in parts:
            for row, name in zip(rows.tolist(), part.record, strict=True):
                record[row] = name
        return Batch(
            signals=_scattered(count, parts, lambda batch: batch.signals),
            present=_scattered(count, parts, lambda batch: batch.present),
            valid=_scattered(count, parts, lambda batch: batch.valid),
            labels={name: _scattered(count, parts, lambda batch, name=name: batch.labels[name]) for name in parts[0][1].labels},
            item=positions,
            record=record,
            first_epoch=_scattered(count, parts, lambda batch: batch.first_epoch),
            noise=self._noise(positions) if self._noise else None,
            source=torch.from_numpy(source),
        )

    def _places(self, start: int, count: int) -> tuple[Index, Index]:
        """Source of every position, and its position in the stream of that source, [count] each."""
        assert start >= self._begin, f"position {start} is of the mixture before position {self._begin}"
        first = start - self._begin
        if self._partitions == 1:
            source, place = self._interleave.places(first, count)
            return source, place + self._offsets[0, source]
        # Every partition has a sequence of its own, and takes from each source what belongs to this partition there.
        around = self._partitions * self._block
        sources, places = [], []
        while count > 0:
            rounds, rest = divmod(first, around)
            lane, inside = divmod(rest, self._block)
            length = min(count, self._block - inside)
            source, place = self._interleave.places(rounds * self._block + inside, length, lane)
            rounds_there, inside_there = np.divmod(place + self._offsets[lane, source], self._block)
            sources.append(source)
            places.append(rounds_there * around + lane * self._block + inside_there)
            first, count = first + length, count - length
        return np.concatenate(sources), np.concatenate(places)


class MixedShardStream(MixedStream):
    """A :class:`MixedStream` over streams of shards, which processes can read too; ``report`` is that of all of them."""

    def __init__(
        self,
        streams: dict[str, Stream],
        names: Sequence[str],
        counts: Sequence[int],
        reading: Reading,
        report: ReadReport,
        noise: Noise | None = None,
    ) -> None:
        super().__init__({**streams}, names, counts, reading.seed, noise, reading.partitions, reading.block)
        self.report, self.workers = report, reading.workers
        self._tolerance = Tolerance(reading.max_corrupt)

    def tolerated(self, start: int, count: int) -> float:
        """As of any :class:`~sleepfm.data.stream.Stream`; the share is that of the whole mixture."""
        return self._tolerance.asked(start, count, len(self))

    def batch(self, start: int, count: int, tolerated: float | None = None) -> Batch:
        """As of any :class:`~sleepfm.data.stream.Stream`.

        Raises:
            ShardError: the corrupt items met in all sources are more than are tolerated.
        """
        bound = self.tolerated(start, count) if tolerated is None else tolerated
        return self._joined(start, count, lambda stream, first, length: stream.batch(first, length, bound))

    def too_many(self, why: str = "") -> TooManyCorruptError:
        """The error that ends reading; the shards in trouble are named by their own data sets."""
        stream = self._streams[0]
        assert isinstance(stream, Stream)
        error = stream.too_many(why)
        return TooManyCorruptError(f"in a mixture of {', '.join(self.names)}: {error}", error.why)


def sources_of(stream: object) -> tuple[str, ...]:
    """Names of the sources of a stream, by ``Batch.source``; none for a stream of one."""
    return stream.names if isinstance(stream, MixedStream) else ()


def _scattered(count: int, parts: Parts, pick: Callable[..., Tensor]) -> Tensor:
    """What ``pick`` gives of each part, in the rows of the part, [count, ...]."""
    first = pick(parts[0][1])
    joined = first.new_empty((count, *first.shape[1:]))
    for rows, part in parts:
        joined[torch.from_numpy(rows)] = pick(part)
    return joined
