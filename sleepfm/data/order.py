"""The order of an infinite, seeded, stateless stream over items that lie in shards.

A pass visits every item once. Its shards are shuffled, taken in windows of ``shuffle_shards``, and the items
of a window are shuffled together, so that a reader touches few files at a time. Pass and window permutations
are pure functions of (seed, pass, window): a position is the whole state, so any process can start anywhere.

With ``partitions`` > 1 the sequence of a pass is cut into that many, which are read side by side: of every
``partitions * block`` positions, the first ``block`` come from the first partition, and so on. A node whose ranks
take the positions of one partition then reads its shards and no others. Partitions belong to the order, as the seed
does, and not to the machines: any number of processes can take up a stream of any number of partitions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def permutation(size: int, *key: int) -> Index:
    """A permutation of ``range(size)`` fixed by ``key``.

    Sorts raw Philox output, whose stream NumPy guarantees across versions (``Generator.permutation``'s is not).
    """
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(raw, kind="stable")


class Window:
    """A stretch of one pass: shards whose items are shuffled together. ``start`` is its place in the pass."""

    def __init__(self, number: int, index: int, start: int, shards: Index, size: int) -> None:
        self.pass_number = number
        self.index = index
        self.start = start
        self.shards = shards
        self.size = size


class PassOrder:
    """Cuts the positions of the infinite stream into pieces that lie within one window."""

    def __init__(self, sizes: Index, seed: int, shuffle_shards: int, partitions: int = 1, block: int = 1) -> None:
        """``sizes`` [K] are the items of each shard, at least one item in all."""
        self._sizes = sizes
        self._seed = seed
        self._span = shuffle_shards
        self.partitions = partitions
        self.block = block
        self.total = int(sizes.sum())
        self._passes: OrderedDict[int, tuple[Index, Index]] = OrderedDict()

    def pieces(self, start: int, count: int) -> Iterator[tuple[Window, slice, slice]]:
        """(window, slice of the window's items, slice of the request) in order, for ``count`` positions."""
        done = 0
        while done < count:
            number, place, together = self._place(start + done)
            window = self._window(number, place)
            first = place - window.start
            length = min(count - done, together, window.size - first)
            yield window, slice(first, first + length), slice(done, done + length)
            done += length

    def ahead(self, position: int) -> Window:
        """The window that the partition of ``position`` comes to when it has left the one of ``position``."""
        number, place, _ = self._place(self.leaves(position))
        return self._window(number, place)

    def leaves(self, position: int) -> int:
        """A position at which the partition of ``position`` has left the window of ``position``, and none after it is in it."""
        number, place, _ = self._place(position)
        window = self._window(number, place)
        rounds = -(-(window.start + window.size - place) // self.block)
        return position + rounds * self.partitions * self.block

    def shuffle(self, window: Window) -> Index:
        """The permutation of the items of ``window``, [window.size]."""
        return permutation(window.size, self._seed, window.pass_number, 1 + window.index)

    def _place(self, position: int) -> tuple[int, int, int]:
        """Pass of a position, its place in the sequence of that pass, and how many positions go on from there."""
        number, within = divmod(position, self.total)
        if self.partitions == 1:
            return number, within, self.total - within
        begin = number * self.total
        partition = position // self.block % self.partitions
        # A partition is as long as the positions of the pass that belong to it.
        end = begin + self.total
        before = sum(self._of_partition(end, other) - self._of_partition(begin, other) for other in range(partition))
        place = before + self._of_partition(position, partition) - self._of_partition(begin, partition)
        return number, place, min(self.block - position % self.block, self.total - within)

    def _of_partition(self, end: int, partition: int) -> int:
        """How many of the positions before ``end`` belong to ``partition``."""
        rounds, rest = divmod(end, self.partitions * self.block)
        return rounds * self.block + min(max(rest - partition * self.block, 0), self.block)

    def _window(self, number: int, place: int) -> Window:
        order, ends = self._pass(number)
        index = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[index - 1]) if index else 0
        shards = order[index * self._span : (index + 1) * self._span]
        return Window(number, index, start, shards, int(ends[index]) - start)

    def _pass(self, number: int) -> tuple[Index, Index]:
        """Shards of a pass in order, and the place where each window ends."""
        if number not in self._passes:
            order = permutation(len(self._sizes), self._seed, number, 0)
            sizes = self._sizes[order]
            ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), self._span)))
            while len(self._passes) >= 2:
                self._passes.popitem(last=False)
            self._passes[number] = (order, ends)
        return self._passes[number]
