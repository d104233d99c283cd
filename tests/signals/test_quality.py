"""Each flag on a signal made to deserve it, and none on a good one."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm.signals.cohorts.cohort import QualityLimits
from sleepfm.signals.quality import Quality, epoch_quality

RATE = 125
EPOCH = 30 * RATE


def good(n_epochs: int = 8, rate: float = RATE) -> np.ndarray:
    """An EEG of 15 uV with a slow wave."""
    random = np.random.default_rng(0)
    seconds = np.arange(round(n_epochs * 30 * rate)) / rate
    return (15 * random.standard_normal(len(seconds)) + 20 * np.sin(2 * np.pi * seconds)).astype(np.float32)


def flags(signal, channel="EEG_C3", rate=RATE, n_epochs=8, limits=None) -> list[Quality]:
    return [Quality(int(bits)) for bits in epoch_quality(signal, rate, channel, n_epochs, limits)]


@pytest.mark.parametrize("rate", [50, 99.5, 125, 256])
def test_a_good_signal_is_good(rate):
    assert flags(good(rate=rate), rate=rate, limits=(-125, 125)) == [Quality(0)] * 8


def test_flat():
    signal = good()
    signal[EPOCH : 2 * EPOCH] = 3
    signal[2 * EPOCH : 2 * EPOCH + EPOCH // 3] = 3  # a third of an epoch is not enough
    assert flags(signal) == [Quality(0), Quality.FLAT, *[Quality(0)] * 6]


def test_clipped():
    signal = np.clip(good() * np.repeat([1, 5, 1, 1, 1, 1, 1, 1], EPOCH), -125, 124)
    assert flags(signal, limits=(-125, 125))[:3] == [Quality(0), Quality.CLIPPED, Quality(0)]
    assert flags(signal)[1] == Quality(0)  # a difference of signals has no limits of its own


@pytest.mark.parametrize("sign", [1, -1])
def test_clipped_from_half_a_step_of_eight_bits_on(sign):
    signal = good()
    signal[: EPOCH // 50] = sign * 127.5  # of a range of 256
    assert flags(signal, limits=(-128, 128))[0] == Quality.CLIPPED
    signal[: EPOCH // 50] = sign * 127.4995
    assert flags(signal, limits=(-128, 128))[0] == Quality(0)


def test_clipped_from_a_hundredth_of_the_epoch_on():
    signal = good(rate=100)
    signal[:30] = 128
    assert flags(signal, rate=100, limits=(-128, 128))[0] == Quality.CLIPPED
    signal[29] = 0
    assert flags(signal, rate=100, limits=(-128, 128))[0] == Quality(0)


def test_mains_and_an_electrode_that_came_off():
    seconds = np.arange(8 * EPOCH) / RATE
    signal = good()
    signal[:EPOCH] += 200 * np.sin(2 * np.pi * 50 * seconds[:EPOCH]).astype(np.float32)
    signal[EPOCH : 2 * EPOCH] += 2000 * np.sin(2 * np.pi * 60 * seconds[:EPOCH]).astype(np.float32)
    found = flags(signal)
    assert found[0] == Quality.MAINS
    assert found[1] == Quality.MAINS | Quality.OUT_OF_RANGE | Quality.DISCONNECTED
    assert found[2] == Quality(0)


def test_out_of_range():
    signal = good()
    signal[EPOCH : EPOCH + EPOCH // 10] += 800
    assert flags(signal)[:2] == [Quality(0), Quality.OUT_OF_RANGE]


def test_strong_mains_and_nothing_else_is_an_open_input():
    signal = good()
    seconds = np.arange(EPOCH) / RATE
    signal[:EPOCH] = 100 * np.sin(2 * np.pi * 50.3 * seconds) + 2 * np.sin(11 * seconds)
    assert flags(signal)[:2] == [Quality.MAINS | Quality.DISCONNECTED, Quality(0)]
    assert flags(0.3 * signal)[0] == Quality.MAINS  # too weak to tell
    half = good()
    half[: EPOCH * 6 // 10] = signal[: EPOCH * 6 // 10]
    assert Quality.DISCONNECTED in flags(half)[0]  # most of the epoch, though diluted by the rest
    slow = good(rate=100)
    slow[:3000] = 100 * np.sin(2 * np.pi * 60 * np.arange(3000) / 100)  # folded back to 40 Hz
    assert flags(slow, rate=100)[:2] == [Quality.MAINS | Quality.DISCONNECTED, Quality(0)]


def test_most_of_the_night_at_another_offset_condemns_no_good_epoch():
    signal = good(12)
    signal[2 * EPOCH :] = -3000 + 100 * np.sin(2 * np.pi * 50 * np.arange(10 * EPOCH) / RATE)
    found = flags(signal, n_epochs=12)
    assert found[:2] == [Quality(0)] * 2 and all(Quality.DISCONNECTED in flag for flag in found[2:])


def test_saturation_at_the_limits_and_short_of_them():
    signal = good()
    square = np.where(np.arange(EPOCH) % 5 < 2, 125, -125)
    signal[:EPOCH] = square
    assert Quality.DISCONNECTED in flags(signal, limits=(-125, 125))[0]
    signal[:EPOCH] = 8 * square  # of an amplifier whose range the header does not tell
    assert Quality.DISCONNECTED in flags(signal)[0]


def test_the_noise_of_an_open_input_is_flat_whatever_the_steps():
    signal = good(4, 100)
    for step in (0.01, 0.5, 3.0):
        signal[:3000] = np.random.default_rng(1).integers(-1, 2, 3000) * step
        found = epoch_quality(signal, 100, "EEG_C3", 4, step=step)
        assert found.tolist() == [Quality.FLAT, 0, 0, 0]


def test_a_channel_without_limits_is_not_judged_by_them():
    signal = good()
    signal[:EPOCH] = 3000 * np.sin(2 * np.pi * 50 * np.arange(EPOCH) / RATE)
    signal[EPOCH : 2 * EPOCH] = 5
    assert not epoch_quality(signal, RATE, "EEG_C3", 8, thresholds=QualityLimits()).any()


def test_gap():
    signal = good()
    signal[EPOCH + 5] = np.nan
    signal[2 * EPOCH : 2 * EPOCH + EPOCH // 10 - 1] = np.nan
    signal[3 * EPOCH : 3 * EPOCH + EPOCH // 10 + 1] = np.nan
    found = flags(signal)
    assert found[:3] == [Quality(0)] * 3 and Quality.GAP in found[3] and found[4] == Quality(0)
    assert all(Quality.GAP in flag for flag in flags(np.full(8 * EPOCH, np.nan, np.float32)))


def test_an_oximeter_off_the_finger():
    signal = np.full(240, 96, np.float32)
    signal[30:45] = 0
    assert flags(signal, "SPO2", 1) == [Quality(0), Quality.DISCONNECTED, *[Quality(0)] * 6]
