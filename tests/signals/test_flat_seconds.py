"""Flat seconds are found among few samples first, and are those that all samples tell."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.signals.quality import _flat_share


@settings(max_examples=60, deadline=None)
@given(rate=st.sampled_from([1.0, 4.0, 10.0, 50.0, 125.0, 200.0]), seed=st.integers(0, 99), epochs=st.integers(1, 5))
def test_seconds_are_flat_where_no_sample_differs(rate: float, seed: int, epochs: int) -> None:
    rng = np.random.default_rng(seed)
    second = max(2, int(rate))
    signal = rng.normal(0, 1, (epochs, 30, second)) * (rng.random((epochs, 30, 1)) < 0.5)
    # A second that is flat but for one sample, which may be none of the few.
    signal[:, 0] = 0
    signal[:, 0, rng.integers(second)] = 9
    signal = signal.reshape(epochs, -1).astype(np.float32)
    wanted = [[np.ptp(epoch[n : n + second]) <= 0.5 for n in range(0, 30 * second, second)] for epoch in signal]
    assert np.array_equal(_flat_share(signal, rate, 0.5), np.mean(wanted, axis=1))
