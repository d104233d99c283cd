"""Whole-night processing against MNE in double precision, and its invariants."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import RobustScaler

from sleepfm.errors import SignalError
from sleepfm.signals.cohorts.cohort import Band
from sleepfm.signals.filters import effective_band, finite_runs, preprocess, quartiles, robust_scale

BANDS = {"EEG_C3": (0.5, 40.0), "ECG": (3.0, 30.0), "EMG_CHIN": (25.0, 49.0), "AIRFLOW": (0.05, 1.0)}


def night(seconds: float, rate: float, seed: int = 0) -> np.ndarray:
    """Pink-like noise with an offset and a drift."""
    random = np.random.default_rng(seed)
    n = round(seconds * rate)
    spectrum = np.fft.rfft(random.standard_normal(n))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    signal = np.fft.irfft(spectrum, n)
    return (30 * signal / signal.std() + 200 + np.linspace(0, 50, n)).astype(np.float32)


@pytest.mark.parametrize("channel", BANDS)
def test_equals_mne_at_100_hz(channel):
    signal = night(300, 100)
    mine = preprocess(signal, 100, channel)
    centred = signal.astype(np.float64) - np.median(signal)
    theirs = mne.filter.filter_data(centred, 100.0, *BANDS[channel], pad="reflect_limited", verbose="error")
    np.testing.assert_allclose(mine, theirs, atol=2e-3 * theirs.std())


@pytest.mark.parametrize("rate", [50, 75, 125, 128, 200, 256, 500, 512])
def test_a_sine_comes_through_with_its_phase(rate):
    seconds = np.arange(60 * rate) / rate
    signal = np.sin(2 * np.pi * 7.3 * seconds).astype(np.float32)
    out = preprocess(signal, rate, "EEG_C3")
    expected = np.sin(2 * np.pi * 7.3 * np.arange(6000) / 100)
    assert out.dtype == np.float32 and len(out) == 6000
    assert np.abs(out - expected)[300:-300].max() < 5e-3


@pytest.mark.parametrize("rate", [25, 50])
def test_the_end_of_a_night_is_processed_like_its_beginning(rate):
    signal = night(120, rate)
    step = 100 // rate
    forwards = preprocess(signal, rate, "EEG_C3")[::step]
    backwards = preprocess(signal[::-1].copy(), rate, "EEG_C3")[::step]
    np.testing.assert_allclose(forwards, backwards[::-1], atol=0.01)


@pytest.mark.parametrize("rate", [200, 256, 512])
def test_nothing_folds_back(rate):
    seconds = np.arange(60 * rate) / rate
    for frequency in (70.0, 90.0):  # would appear at 30 and 10 Hz
        signal = np.sin(2 * np.pi * frequency * seconds).astype(np.float32)
        assert np.abs(preprocess(signal, rate, "EEG_C3")[300:-300]).max() < 0.01


def test_short_stretches_do_not_know_of_epochs():
    """What is processed whole has nothing of the edges that epochs filtered one by one have."""
    signal = night(600, 125)
    whole = preprocess(signal, 125, "EEG_C3")
    part = preprocess(signal[125 * 120 : 125 * 360], 125, "EEG_C3")
    inner = slice(1000, -1000)
    np.testing.assert_allclose(part[inner], whole[12_000:36_000][inner], atol=0.01)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([50.0, 97.6, 99.9, 100.0, 124.95, 125.0, 128.0, 199.87, 256.0, 487.5]),
    samples=st.integers(1, 3000),
)
def test_length_is_that_of_the_recording(rate, samples):
    signal = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    out = preprocess(signal, rate, "EEG_C3")
    assert len(out) == pytest.approx(samples * 100 / rate, abs=1.001) and np.isfinite(out).all()
    assert len(preprocess(signal, rate, "SPO2")) == len(out)


def test_gaps_stay_where_they_are():
    signal = night(120, 125)
    signal[125 * 40 : 125 * 50] = np.nan
    signal[0] = np.nan
    out = preprocess(signal, 125, "EEG_C3")
    assert np.isnan(out[4000:5000]).all() and np.isnan(out[0])
    assert np.isfinite(out[1:4000]).all() and np.isfinite(out[5000:]).all()
    after = preprocess(signal[125 * 50 :], 125, "EEG_C3")
    np.testing.assert_array_equal(out[5000:], after)
    assert np.isnan(preprocess(np.full(10, np.nan, np.float32), 10, "SPO2")).all()


def test_oximetry_is_held_not_filtered():
    signal = np.array([97, 96, 0, 95], np.float32)
    out = preprocess(signal, 1, "SPO2")
    np.testing.assert_array_equal(out, np.repeat(signal, 100))
    np.testing.assert_array_equal(preprocess(np.repeat(signal, 3), 3, "SPO2")[[0, 99, 150, 399]], [97, 97, 96, 95])


def test_a_band_is_cut_to_what_the_rate_carries():
    assert effective_band(Band(low=0.5, high=40), 50) == (0.5, 25)
    assert effective_band(Band(low=0.5, high=40), 125) == (0.5, 40)
    assert effective_band(Band(low=25, high=49), 64) == (25, 32)
    assert effective_band(Band(low=1, high=60), 200) == (1, None)
    with pytest.raises(SignalError, match="is too low for the band"):
        effective_band(Band(low=25, high=49), 50)


@pytest.mark.parametrize(("signal", "rate"), [(np.zeros((2, 5)), 100), (np.zeros(0), 100), (np.zeros(5), 0)])
def test_wrong_signals_are_refused(signal, rate):
    with pytest.raises(SignalError, match="expected samples"):
        preprocess(signal.astype(np.float32), rate, "ECG")


def test_robust_scale():
    signal = night(60, 100)
    scaled, median, iqr = robust_scale(signal)
    expected = RobustScaler().fit_transform(signal[:, None].astype(np.float64))[:, 0]
    np.testing.assert_allclose(scaled, expected, atol=1e-4)
    np.testing.assert_allclose(scaled * iqr + median, signal, rtol=1e-5)
    signal[:1000] = np.nan
    again, middle, _ = robust_scale(signal)
    assert np.isnan(again[:1000]).all() and abs(np.nanmedian(again)) < 1e-5 and middle != median


@pytest.mark.parametrize("signal", [np.zeros(100), np.full(10, np.nan), np.r_[np.zeros(80), np.ones(20)]])
def test_flat_signals_have_no_scale(signal):
    with pytest.raises(SignalError):
        robust_scale(signal.astype(np.float32))


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_finite_runs(mask):
    signal = np.where(mask, 1.0, np.nan).astype(np.float32)
    covered = np.zeros(len(mask), bool)
    for start, stop in finite_runs(signal):
        assert stop > start and not covered[start:stop].any()
        covered[start:stop] = True
    assert covered.tolist() == mask


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([-1e4, -3.0, -1.0, 0.0, 0.0, 1.0, 2.5, 7.0]) | st.floats(-100, 100, width=32), min_size=1),
    repeats=st.sampled_from([1, 7, 1000]),
    shape=st.sampled_from(["cycle", "steps", "sorted"]),
)
def test_quartiles_are_those_of_numpy(values, repeats, shape):
    array = np.array(values, np.float32)
    array = {"cycle": np.tile(array, repeats), "steps": np.repeat(array, repeats), "sorted": np.sort(np.tile(array, repeats))}[
        shape
    ]
    expected = np.percentile(array.astype(np.float64), (25, 50, 75))
    np.testing.assert_allclose(quartiles(array), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channel", "rate"),
    [*[("EEG_C3", rate) for rate in (100, 124.95, 125, 128, 512)], ("EMG_CHIN", 125), ("EMG_CHIN", 256), ("AIRFLOW", 10)],
)
def test_one_pass_equals_a_slow_one_in_double_precision(channel, rate):
    """The night's own Fourier series times the filter's response, summed term by term at each output sample."""
    low, high = effective_band(Band(low=BANDS[channel][0], high=BANDS[channel][1]), rate)
    signal = night(200, rate) - 200
    centred = signal.astype(np.float64) - np.median(signal)
    reach = min(len(centred) - 1, round(80 * rate))  # odd reflection, far beyond the filter
    whole = np.concatenate([2 * centred[0] - centred[reach:0:-1], centred, 2 * centred[-1] - centred[-2 : -reach - 2 : -1]])
    spectrum = np.fft.rfft(whole) / len(whole)
    spectrum[1 : (len(whole) + 1) // 2] *= 2
    frequency = np.fft.rfftfreq(len(whole), 1 / rate)
    taps = mne.filter.create_filter(None, 100.0, low, high, verbose="error")
    carried = frequency < 50
    turns = np.arange(len(taps)) - len(taps) // 2
    response = np.concatenate([np.cos(2 * np.pi / 100 * part[:, None] * turns) @ taps for part in np.array_split(frequency, 50)])
    spectrum = np.where(carried, spectrum * response, 0)
    places = np.arange(9000, 9040)
    phase = np.exp(2j * np.pi * frequency * (places[:, None] / 100 + reach / rate))
    expected = (phase * spectrum).real.sum(axis=1)
    np.testing.assert_allclose(preprocess(signal, rate, channel)[places], expected, atol=1e-3 * np.std(expected))


@pytest.mark.parametrize(("channel", "target"), [("AIRFLOW", 10), ("SPO2", 4)])
@pytest.mark.parametrize("rate", [1, 4, 8, 10, 12.5, 32, 64, 200])
@pytest.mark.parametrize("gap", [False, True])
def test_a_lower_target_gives_every_nth_sample(channel, target, rate, gap):
    """What the stop band lets pass beyond the lower Nyquist frequency, 53 dB of it gone, is cut instead of folded."""
    rng = np.random.default_rng(4)
    signal = rng.standard_normal(int(900 * rate)).astype(np.float32)
    if gap:
        signal[len(signal) // 3 : len(signal) // 2] = np.nan
    whole, thin = preprocess(signal, rate, channel), preprocess(signal, rate, channel, target=target)
    assert len(thin) == -(-len(whole) * target // 100)
    tolerance = 0 if channel == "SPO2" or gap else 0.004
    np.testing.assert_allclose(thin, whole[:: 100 // target], atol=tolerance)
