"""Filters beside those of mne and SciPy, tap for tap."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import firwin

from sleepfm.constants import RATE_HZ
from sleepfm.signals.cohorts.catalogue import GENERIC, load_cohort
from sleepfm.signals.fir import band_filter, kaiser, low_pass


@pytest.mark.parametrize("channel", sorted(load_cohort(GENERIC).filters))
def test_the_filters_of_every_channel_are_those_of_mne(channel):
    band = load_cohort(GENERIC).filters[channel]
    for high in (band.high, 25.0, None):
        if high is not None and (high >= RATE_HZ / 2 or (band.low or 0) >= high):
            continue
        expected = mne.filter.create_filter(None, float(RATE_HZ), band.low, high, verbose="error")
        assert np.array_equal(band_filter(band.low, high, float(RATE_HZ)), expected)


@settings(max_examples=60, deadline=None)
@given(
    low=st.none() | st.floats(0.05, 20.0),
    high=st.none() | st.floats(21.0, 49.0),
    rate=st.sampled_from([100.0, 128.0, 200.0]),
)
def test_any_band_is_that_of_mne(low, high, rate):
    expected = mne.filter.create_filter(None, rate, low, high, verbose="error")
    assert np.array_equal(band_filter(low, high, rate), expected)


def test_what_removes_images_is_that_of_scipy():
    for fill in (2, 4, 5, 10):
        expected = firwin(20 * fill + 1, 1 / fill, window=("kaiser", 5.0))
        assert np.array_equal(low_pass(20 * fill + 1, 1 / fill, kaiser(5.0)), expected)


def test_an_edge_outside_of_the_spectrum_is_refused():
    for low, high in ((0.0, 10.0), (1.0, 50.0), (60.0, None)):
        with pytest.raises(ValueError, match="is not between 0 and 50 Hz"):
            band_filter(low, high, 100.0)
