"""Signals to int16 and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sleepfm.constants import CHANNELS
from sleepfm.data.format import CHANNEL_SCALE, INT16_MAX, SIGNAL_SCALE
from sleepfm.data.quantisation import PIECE_SAMPLES, dequantise, quantise


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50))
def test_quantisation_errs_by_half_a_step_and_clips_the_rest(values):
    signal = np.array(values, np.float32)
    steps = quantise("ECG", signal)
    inside = np.abs(signal) <= 32
    assert np.abs(steps[inside] * SIGNAL_SCALE - signal[inside]).max(initial=0) <= 0.51 * SIGNAL_SCALE
    beyond = np.abs(np.rint(signal * np.float32(1 / SIGNAL_SCALE))) >= 32767
    np.testing.assert_array_equal(np.abs(steps.astype(int)) == 32767, beyond)
    assert np.abs(steps.astype(int)).max() <= 32767


def test_steps_come_back_as_the_same_steps():
    steps = np.arange(-INT16_MAX, INT16_MAX + 1, dtype=np.int16)
    for channel in CHANNELS:
        signal = dequantise(channel, steps)
        assert signal.dtype == np.float32
        np.testing.assert_allclose(signal, steps * CHANNEL_SCALE[channel], rtol=1e-6)
        np.testing.assert_array_equal(quantise(channel, signal), steps)


def test_pieces_leave_no_seams():
    signal = np.random.default_rng(0).standard_normal(2 * PIECE_SAMPLES + 5, np.float32)
    halves = [quantise("ECG", part) for part in np.split(signal, [PIECE_SAMPLES - 7])]
    np.testing.assert_array_equal(quantise("ECG", signal), np.concatenate(halves))
