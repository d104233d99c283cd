"""Several streams as one, whose items come from them in the order of an :class:`~sleepfm.data.interleave.Interleave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleepfm.data.batch import Batch
from sleepfm.data.identity import DataDigest
from sleepfm.data.interleave import Interleave, items_a_pass
from sleepfm.data.order import Index

Parts = list[tuple[Index, Batch]]
# As that of one stream, see :mod:`sleepfm.data.stream`, which knows more than the engine may.
Noise = Callable[[Tensor], Tensor]


class _Stretch:
    """Positions from ``begin`` on, in which the mixture is the same.

    ``sources`` [S] are the numbers of its sources' streams, ``offsets`` [partitions, S] what was taken of each before.
    """

    def __init__(self, begin: int, interleave: Interleave, sources: Index, offsets: Index) -> None:
        self.begin, self.interleave, self.sources, self.offsets = begin, interleave, sources, offsets


class MixedStream:
    """An infinite, stateless stream over the ``streams`` of the sources in ``data``, by their digests.

    Items of all have the same shapes. Positions and noise are those of the mixture; ``names`` those of the sources, in the order
    of ``Batch.source``. With ``natural`` each source gives its own size, whatever its share.
    """

    def __init__(
        self,
        streams: Mapping[str, Any],
        data: DataDigest,
        seed: int,
        noise: Noise | None = None,
        natural: bool = False,
        partitions: int = 1,
        block: int = 1,
    ) -> None:
        self._keys = [*streams]
        self.streams = tuple(streams.values())
        names = {part.digest: part.name for part in data.parts}
        self.names = tuple(names[key] for key in self._keys)
        self._seed, self._noise, self._natural = seed, noise, natural
        self._partitions, self._block = partitions, block
        self._stretches = [self._stretch(0, data, np.zeros((partitions, len(streams)), np.int64))]

    @property
    def counts(self) -> tuple[int, ...]:
        """Items that a pass of the mixture takes from each source."""
        return self._stretches[-1].interleave.counts

    def __len__(self) -> int:
        """Items in one pass of the mixture."""
        return self._stretches[-1].interleave.total

    def follow(self, history: Sequence[tuple[int, DataDigest]]) -> None:
        """The order of a run whose mixture has changed on its way: ``history`` has the position from which each one holds.

        Every source of an earlier one is in the present one, which is the last, and goes on there behind what was taken of it.
        Positions are at the borders of steps. Whatever is taken again before a change is what it was.
        """
        taken = np.zeros((self._partitions, len(self.streams)), np.int64)
        stretches: list[_Stretch] = []
        for begin, data in history:
            if stretches:
                last = stretches[-1]
                for lane in range(self._partitions):
                    passed = last.interleave.taken((begin - last.begin) // self._partitions, lane)
                    taken[lane, last.sources] += np.array(passed)
            stretches.append(self._stretch(begin, data, taken))
        self._stretches = stretches

    def _stretch(self, begin: int, data: DataDigest, taken: Index) -> _Stretch:
        held = [part for part in data.parts if part.digest in self._keys]
        sources = np.array([self._keys.index(part.digest) for part in held])
        sizes = [len(self.streams[number]) for number in sources.tolist()]
        weights = [] if self._natural else [part.weight for part in held if part.weight is not None]
        epochs = [] if self._natural else [part.epochs for part in held if part.epochs is not None]
        counts = items_a_pass(sizes, weights, epochs, 1.0 if self._natural else data.temperature)
        return _Stretch(begin, Interleave(counts, self._seed), sources, taken[:, sources].copy())

    def batch(self, start: int, count: int) -> Batch:
        """The items at positions ``start .. start + count``, with their ``source``, whose name is part of a recording's."""
        return self._joined(start, count, lambda stream, first, length: stream.batch(first, length))

    def _joined(self, start: int, count: int, read: Callable[[Any, int, int], Batch]) -> Batch:
        source, place = self._places(start, count)
        parts: Parts = []
        for number in np.unique(source).tolist():
            rows = np.flatnonzero(source == number)
            for run in np.split(rows, np.flatnonzero(np.diff(place[rows]) != 1) + 1):
                parts.append((run, read(self.streams[number], int(place[run[0]]), len(run))))
        positions = torch.arange(start, start + count)
        record = [""] * count
        for run, part in parts:
            for row, name in zip(run.tolist(), part.record, strict=True):
                record[row] = f"{self.names[int(source[row])]}/{name}"
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
        sources, places = [], []
        ends = [*(stretch.begin for stretch in self._stretches[1:]), start + count]
        for stretch, end in zip(self._stretches, ends, strict=True):
            first, last = max(start, stretch.begin), min(start + count, end)
            if first < last:
                source, place = self._in_stretch(stretch, first - stretch.begin, last - first)
                sources.append(stretch.sources[source])
                places.append(place)
        return np.concatenate(sources), np.concatenate(places)

    def _in_stretch(self, stretch: _Stretch, first: int, count: int) -> tuple[Index, Index]:
        if self._partitions == 1:
            source, place = stretch.interleave.places(first, count)
            return source, place + stretch.offsets[0, source]
        # Every partition has a sequence of its own, and takes from each source what belongs to this partition there.
        around = self._partitions * self._block
        sources, places = [], []
        while count > 0:
            rounds, rest = divmod(first, around)
            lane, inside = divmod(rest, self._block)
            length = min(count, self._block - inside)
            source, place = stretch.interleave.places(rounds * self._block + inside, length, lane)
            rounds_there, inside_there = np.divmod(place + stretch.offsets[lane, source], self._block)
            sources.append(source)
            places.append(rounds_there * around + lane * self._block + inside_there)
            first, count = first + length, count - length
        return np.concatenate(sources), np.concatenate(places)


def follow(stream: object, history: Sequence[tuple[int, Mapping[str, Any]]], global_batch: int) -> None:
    """Let ``stream``, if it is a mixture, follow the ``history`` of a run: steps, and the record of the data from each one on."""
    if isinstance(stream, MixedStream):
        stream.follow([(step * global_batch, DataDigest.from_record(known)) for step, known in history])


def sources_of(stream: object) -> tuple[str, ...]:
    """Names of the sources of a stream, by ``Batch.source``; none for the stream of one data set."""
    return stream.names if isinstance(stream, MixedStream) else ()


def streams_of(stream: Any) -> tuple[Any, ...]:
    """The streams of the sources of ``stream``; itself for the stream of one data set."""
    return stream.streams if isinstance(stream, MixedStream) else (stream,)


def _scattered(count: int, parts: Parts, pick: Callable[..., Tensor]) -> Tensor:
    """What ``pick`` gives of each part, in the rows of the part, [count, ...]."""
    first = pick(parts[0][1])
    joined = first.new_empty((count, *first.shape[1:]))
    for rows, part in parts:
        joined[torch.from_numpy(rows)] = pick(part)
    return joined
