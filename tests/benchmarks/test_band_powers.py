"""Band powers of a signal that is known, and what they do not depend on."""

import sys
from pathlib import Path

import numpy as np

from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import band_powers

EPOCHS = 24


def noise() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(EPOCHS * EPOCH_SAMPLES)


def test_a_rhythm_is_found_in_its_band() -> None:
    time = np.arange(EPOCHS * EPOCH_SAMPLES) / RATE_HZ
    for number, (low, high) in enumerate(band_powers.BANDS):
        signal = 20 * np.sin(2 * np.pi * (low + high) / 2 * time) + 0.1 * noise()
        shares = np.exp(band_powers.of_epochs(signal)[1:-1, : len(band_powers.BANDS)])
        assert (shares.argmax(axis=1) == number).all() and shares.max(axis=1).min() > 0.8


def test_what_is_relative_to_the_recording_does_not_depend_on_its_scale() -> None:
    signal = noise() * np.repeat(np.linspace(1, 3, EPOCHS), EPOCH_SAMPLES)
    one, other = (band_powers.with_surroundings(band_powers.of_epochs(gain * signal)) for gain in (1.0, 40.0))
    assert one.shape == (EPOCHS, 4 * band_powers.of_epochs(signal).shape[1])
    half = one.shape[1] // 2
    np.testing.assert_allclose(one[:, half:], other[:, half:], atol=1e-4)
    assert np.abs(one[:, :half] - other[:, :half]).max() > 1


def test_an_epoch_alone_is_all_that_is_around_it() -> None:
    facts = np.arange(12.0).reshape(1, 12)
    np.testing.assert_allclose(band_powers.with_surroundings(facts)[:, 12:24], facts)
