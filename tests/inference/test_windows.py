from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.inference.windows import _windows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 90), st.integers(1, 24), st.booleans(), st.integers(1, 5))
def test_windows_decide_every_epoch_once_with_the_most_context(n_epochs, length, bidirectional, batch):
    length = min(length, n_epochs)
    owner = {}
    starts_seen = []
    for starts, owners in _windows(n_epochs, length, bidirectional, batch):
        assert len(starts) == len(owners) <= batch
        starts_seen += starts
        for start, owned in zip(starts, owners, strict=True):
            assert start <= owned.start <= owned.stop <= start + length <= n_epochs
            for epoch in range(owned.start, owned.stop):
                assert epoch not in owner
                owner[epoch] = start
    assert sorted(owner) == list(range(n_epochs))
    for epoch, start in owner.items():
        holding = [s for s in starts_seen if s <= epoch < s + length]
        if not bidirectional:
            assert start == min(holding)
