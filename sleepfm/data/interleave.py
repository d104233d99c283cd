"""The order of a mixture: which source a position takes its item from, and which of that source's own items it is.

A pass of the mixture takes a fixed number of items from each source. It is cut into blocks of about :data:`BLOCK` items; every
source gives each block its share, as evenly as whole items can be divided, and the items of a block are shuffled. A source's
own items come in the source's own order, one after the other and pass after pass. So a position is the whole state, as in
:mod:`sleepfm.data.order`, and what is kept in memory does not depend on the size of the sources.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sleepfm.data.order import Index, permutation

BLOCK = 4096
# Sets the permutations of a mixture apart from those of its sources at the same seed.
_MIXTURE = 0x6D69780A
_KEPT = 8


class Interleave:
    """``counts`` [S] are the items that a pass takes from each source, at least one each."""

    def __init__(self, counts: Sequence[int], seed: int, block: int = BLOCK) -> None:
        self.counts = tuple(int(count) for count in counts)
        assert min(self.counts) > 0, "every source gives a pass an item"
        self.total = sum(self.counts)
        self._seed = seed
        self._blocks = max(1, self.total // block)
        self._kept: OrderedDict[tuple[int, int, int], tuple[NDArray[np.int64], Index]] = OrderedDict()

    def places(self, start: int, count: int, lane: int = 0) -> tuple[Index, Index]:
        """Source and place in the infinite sequence of its items of the positions ``start .. start + count``, [count] each.

        ``lane`` is another sequence with the same shares: each partition of a stream has its own.
        """
        source, place = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            number, within = divmod(start + done, self.total)
            block = self._block_of(within)
            sources, ranks = self._shuffled(number, block, lane)
            first = within - sum(self._before(block))
            length = min(count - done, len(sources) - first)
            part = sources[first : first + length]
            begin = np.array(self._before(block), np.int64) + number * np.array(self.counts, np.int64)
            source[done : done + length] = part
            place[done : done + length] = begin[part] + ranks[first : first + length]
            done += length
        return source, place

    def taken(self, position: int, lane: int = 0) -> list[int]:
        """Items of each source before ``position`` of the sequence ``lane``, [S]."""
        number, within = divmod(position, self.total)
        block = self._block_of(within)
        before = self._before(block)
        sources, _ = self._shuffled(number, block, lane)
        inside = np.bincount(sources[: within - sum(before)], minlength=len(self.counts)).tolist()
        return [number * count + b + i for count, b, i in zip(self.counts, before, inside, strict=True)]

    def _before(self, block: int) -> list[int]:
        """Items of each source that a pass has taken before its block: whole numbers, so that no machine rounds otherwise."""
        return [count * block // self._blocks for count in self.counts]

    def _block_of(self, within: int) -> int:
        block = within * self._blocks // self.total
        # Shares are rounded down: a block begins at most an item a source before its even place.
        while block + 1 < self._blocks and sum(self._before(block + 1)) <= within:
            block += 1
        return block

    def _shuffled(self, number: int, block: int, lane: int) -> tuple[NDArray[np.int64], Index]:
        """Source of every item of a block, and the item's place among those of its source there."""
        key = (number, block, lane)
        if key not in self._kept:
            size = [after - before for before, after in zip(self._before(block), self._before(block + 1), strict=True)]
            sources = np.repeat(np.arange(len(size)), size)
            sources = sources[permutation(len(sources), _MIXTURE, self._seed, lane, number, block)]
            ranks = np.empty(len(sources), np.int64)
            for source, items in enumerate(size):
                ranks[sources == source] = np.arange(items)
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = (sources, ranks)
        self._kept.move_to_end(key)
        return self._kept[key]


def items_a_pass(
    sizes: Sequence[int], weights: Sequence[float] = (), epochs: Sequence[float] = (), temperature: float = 1.0
) -> list[int]:
    """How many items a pass of the mixture takes from each source.

    Args:
        sizes: items of each source, [S], all positive.
        weights: each source's share of the items, relative to the others'; the pass is as long as all sources together.
        epochs: how often each source is passed over meanwhile, instead of ``weights``.
        temperature: without either, shares are those of ``size ** (1 / temperature)``: 1 by size, the higher the more alike
            (as in multilingual models: Arivazhagan et al. 2019, arXiv 1907.05019).
    """
    if epochs:
        return [max(1, round(size * times)) for size, times in zip(sizes, epochs, strict=True)]
    if not weights and temperature == 1:
        return list(sizes)
    largest = max(sizes)
    shares = list(weights) or [(size / largest) ** (1 / temperature) for size in sizes]
    total, whole = sum(sizes), sum(shares)
    exact = [share / whole * total for share in shares]
    counts = [int(count) for count in exact]
    # Largest remainders; of equal ones the first.
    order = sorted(range(len(exact)), key=lambda source: (counts[source] - exact[source], source))
    for source in order[: total - sum(counts)]:
        counts[source] += 1
    return [max(1, count) for count in counts]
