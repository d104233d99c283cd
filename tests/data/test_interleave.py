"""The order of a mixture beside an independent, slow one, and what it promises of shares and positions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.data.interleave import _MIXTURE, BLOCK, Interleave, items_a_pass
from sleepfm.data.order import permutation

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def slow_order(counts: list[int], seed: int, block: int, lane: int, until: int) -> list[tuple[int, int]]:
    """Source and place of every position, one after the other from the beginning, without any arithmetic on positions."""
    found: list[tuple[int, int]] = []
    given = Counter[int]()
    blocks = max(1, sum(counts) // block)
    number = 0
    while len(found) < until:
        for piece in range(blocks):
            items = []
            for source, count in enumerate(counts):
                # Of a source's items in a pass, those whose even place falls into this piece.
                items += [source for item in range(count) if -(-(item + 1) * blocks // count) - 1 == piece]
            order = permutation(len(items), _MIXTURE, seed, lane, number, piece)
            for place in order.tolist():
                found.append((items[place], given[items[place]]))
                given[items[place]] += 1
        number += 1
    return found[:until]


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.integers(0, 5), st.integers(1, 40), st.integers(0, 3), st.integers(0, 400), st.integers(1, 80))
def test_it_is_the_order_of_a_slow_implementation(counts, seed, block, lane, start, size):
    expected = slow_order(counts, seed, block, lane, start + size)[start:]
    source, place = Interleave(counts, seed, block).places(start, size, lane)
    assert list(zip(source.tolist(), place.tolist(), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(1, 40), st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 300))
def test_any_cut_of_the_positions_gives_the_same_order(counts, block, parts, start):
    whole = Interleave(counts, 3, block).places(start, sum(parts))
    worn = Interleave(counts, 3, block)
    begins = start + np.cumsum([0, *parts[:-1]])
    pieces = {begin: worn.places(begin, size) for begin, size in reversed([*zip(begins.tolist(), parts, strict=True)])}
    for column in range(2):
        assert np.concatenate([pieces[begin][column] for begin in sorted(pieces)]).tolist() == whole[column].tolist()


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(1, 40), st.integers(0, 500), st.integers(0, 2))
def test_what_was_taken_by_a_position_is_what_was_given_before_it(counts, block, position, lane):
    interleave = Interleave(counts, 1, block)
    before = interleave.places(0, position, lane)[0] if position else np.empty(0, np.int64)
    assert interleave.taken(position, lane) == np.bincount(before, minlength=len(counts)).tolist()


@given(COUNTS, st.integers(1, 40), st.integers(0, 3))
def test_a_pass_takes_from_every_source_what_it_is_told_to_each_once(counts, block, number):
    interleave = Interleave(counts, 1, block)
    source, place = interleave.places(number * interleave.total, interleave.total)
    for key, count in enumerate(counts):
        assert sorted(place[source == key].tolist()) == list(range(number * count, (number + 1) * count))


def test_shares_hold_in_every_part_of_a_pass_and_batches_are_mixed():
    interleave = Interleave([900_000, 90_000, 10_000], 0)
    source, _ = interleave.places(123_456, 50 * BLOCK)
    shares = np.bincount(source) / len(source)
    assert np.abs(shares - [0.9, 0.09, 0.01]).max() < 0.002
    # As of random draws, which differ from batch to batch.
    rare = (source.reshape(-1, 256) == 1).sum(1)
    assert 0.7 < rare.var() / (256 * 0.09 * 0.91) < 1.3


def test_memory_does_not_grow_with_the_sources():
    interleave = Interleave([10**12, 10**9, 7], 0)
    source, place = interleave.places(3 * 10**12 + 5, 1000)
    assert source.tolist().count(0) > 980 and place.max() > 10**12
    assert sum(len(kept[0]) for kept in interleave._kept.values()) < 4 * BLOCK


def test_shares_are_stated_in_four_ways():
    sizes = [600, 300, 100]
    assert items_a_pass(sizes) == sizes
    assert items_a_pass(sizes, weights=[1, 1, 2]) == [250, 250, 500]
    assert items_a_pass(sizes, epochs=[1, 0.5, 3]) == [600, 150, 300]
    assert items_a_pass(sizes, temperature=1) == sizes
    warm, hot = items_a_pass(sizes, temperature=2), items_a_pass(sizes, temperature=1e9)
    roots = np.sqrt(sizes)
    assert warm == pytest.approx(roots / roots.sum() * 1000, abs=1) and hot == pytest.approx([1000 / 3] * 3, abs=1)
    assert sum(warm) == sum(hot) == 1000
    # None is left out, however small its share.
    assert items_a_pass([1000, 1], weights=[1e9, 1]) == [1001, 1]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 100)), min_size=1, max_size=8))
def test_counts_are_within_one_of_their_shares_and_fill_the_pass(sources):
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    counts = items_a_pass(sizes, weights=weights)
    exact = [weight / sum(weights) * sum(sizes) for weight in weights]
    assert all(abs(count - wanted) <= 1 + 1e-6 for count, wanted in zip(counts, exact, strict=True))
    assert sum(counts) - sum(sizes) in range(len(sizes))
