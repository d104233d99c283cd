"""A stretch without signal costs its own epochs and nothing else: no other epoch, and not the scale."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from dead_stretches import KINDS, dead_samples, surrounded, with_dead
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_edf import Made, write_edf

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.errors import SignalError
from sleepfm.signals.prepare import prepare
from sleepfm.signals.quality import UNUSABLE, Quality, unusable
from sleepfm.signals.recording import Recording, SignalInfo

EPOCHS = 24
# Label, canonical channel, rate in Hz, unit, range, bits of the converter.
SIGNALS = (
    ("C4-M1", "EEG_C4", 125, "uV", 125.0, 8),
    ("E1-M2", "EOG_L", 100, "uV", 3200.0, 16),
    ("Chin EMG", "EMG_CHIN", 125, "uV", 31.25, 8),
    ("ECG", "ECG", 125, "mV", 5.0, 12),
    ("Thorax", "THORAX", 10, "", 1.0, 8),
)


def night(epochs: int = EPOCHS) -> Recording:
    """A recording in memory of somebody alive: brain, eyes, muscle, heart and breath."""
    infos = tuple(
        SignalInfo(label, unit, rate, epochs * 30 * rate, -top, top, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for label, _, rate, unit, top, bits in SIGNALS
    )

    def source(index: int) -> np.ndarray:
        info = infos[index]
        random = np.random.default_rng(index)
        seconds = np.arange(info.n_samples) / info.rate
        white = random.standard_normal(info.n_samples)
        waves = np.sin(2 * np.pi * 1.1 * seconds) * (1 + 0.5 * np.sin(2 * np.pi * seconds / 400))
        match SIGNALS[index][1]:
            case "EEG_C4":
                signal = 12 * white + 15 * waves
            case "EOG_L":
                signal = 8 * white + 30 * waves + 40
            case "EMG_CHIN":
                signal = 3 * white
            case "ECG":
                signal = 0.02 * white + 0.9 * np.exp(-(((seconds % 0.93) - 0.4) ** 2) / 0.0004)
            case _:
                signal = 0.4 * np.sin(2 * np.pi * 0.25 * seconds) + 0.02 * white
        return np.rint(signal / info.step).astype(np.float32) * np.float32(info.step)

    start = datetime(2020, 2, 1, 22)
    return Recording(Path("made.edf"), "EDF", "", start, epochs * 30.0, infos, (), (), (), source)


@pytest.fixture(scope="module")
def clean():
    return prepare(night())


def test_a_living_night_is_usable_everywhere(clean):
    assert set(clean.channels) == {channel for _, channel, *_ in SIGNALS}
    assert not any(unusable(quality).any() for quality in clean.quality.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(600, 1800)])
def test_dead_time_around_a_night_leaves_scale_and_samples(clean, kind, before, after):
    """More than thrice the night of dead time: the scale within 1 %, and each epoch of the night what it was."""
    found = prepare(surrounded(night(), before, after, kind))
    first = before // 30
    assert found.channels.keys() == clean.channels.keys()
    for name, samples in clean.channels.items():
        bad = unusable(found.quality[name])
        assert not bad[first : first + EPOCHS].any(), name
        reach = int(name == "THORAX")  # a step into a drifting belt rings for 33 s, which may pass for a breath
        assert bad[: max(0, first - reach)].all() and bad[first + EPOCHS + reach :].all(), name
        assert found.iqr[name] == pytest.approx(clean.iqr[name], rel=0.01)
        assert abs(found.median[name] - clean.median[name]) <= 0.01 * clean.iqr[name]
        own = found.channels[name][first * EPOCH_SAMPLES : (first + EPOCHS) * EPOCH_SAMPLES]
        inner = slice(40 * 100, -40 * 100)  # the filter of breathing reaches 33 s
        np.testing.assert_allclose(own[inner], samples[inner], atol=0.03 * np.abs(samples).max())


@example(stretches=[(0.0, 61.0, "zeros"), (300.0, 181.0, "zeros")])
@example(stretches=[(0.0, 242.0, "zeros"), (509.0, 183.0, "zeros")])
@settings(max_examples=6, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(st.floats(0, 650), st.floats(60, 250), st.sampled_from(KINDS)),
        min_size=1,
        max_size=2,
    )
)
def test_dead_stretches_anywhere_cost_their_own_epochs_alone(clean, stretches):
    found = prepare(with_dead(night(), stretches))
    seconds = np.zeros(EPOCHS * 30)
    for onset, duration, _ in stretches:
        seconds[int(onset) : int(np.ceil(onset + duration))] = 1
    dead = seconds.reshape(EPOCHS, 30).mean(axis=1)
    assert found.channels
    for name in found.channels:
        bad = unusable(found.quality[name])
        assert not bad[dead == 0].any(), name
        if name == "THORAX":  # the steps of a dead belt ring for 33 s, which may pass for breath
            continue
        assert bad[dead == 1].all(), name
        # What is alive of an epoch counts, but for a second at the border; of one that is dead for its greater part nothing does.
        lifeless = (found.quality[name] & np.uint8(Quality.FLAT | Quality.DISCONNECTED)) > 0
        alive = (np.convolve(seconds, [1, 1, 1], "same") == 0) & np.repeat(~lifeless, 30)
        if alive.mean() >= 1 / 3:
            assert found.iqr[name] == pytest.approx(good_iqr(clean, name, alive), rel=0.05), name
        samples = found.channels[name].reshape(EPOCHS, -1)
        # Beside a dead stretch a second is lost, and the filter ends there.
        same = np.convolve(dead > 0, [1, 1, 1], "same") == 0
        same[[0, -1]] = False
        mine = samples[same] * found.iqr[name] + found.median[name]
        theirs = clean.channels[name].reshape(EPOCHS, -1)[same] * clean.iqr[name] + clean.median[name]
        assert np.abs(mine - theirs).max(initial=0) <= 0.25 * clean.iqr[name], name


def good_iqr(clean, name: str, good: np.ndarray) -> float:
    """Of the ``good`` seconds."""
    low, high = np.percentile(clean.channels[name].reshape(EPOCHS * 30, -1)[good], [25, 75])
    return float(high - low) * clean.iqr[name]


@pytest.mark.parametrize("kind", ["open input", "mains"])
def test_a_channel_that_is_dead_all_night_is_missing_with_its_reason(kind):
    found = prepare(with_dead(night(), [(0, EPOCHS * 30, kind)], only=["C4-M1"]))
    assert "EEG_C4" not in found.channels and "EOG_L" in found.channels
    reason = found.provenance["missing"]["EEG_C4"]
    assert "flat for the whole recording" in reason or f"in any of its {EPOCHS} epochs" in reason
    with pytest.raises(SignalError, match="no usable signal in any channel"):
        prepare(with_dead(night(), [(0, EPOCHS * 30, kind)]))


def test_a_pause_of_breathing_is_no_dead_sensor():
    """Two minutes without breath, the longest apneas there are, stay; the belt that fell off does not."""
    found = prepare(with_dead(night(), [(60, 120, "open input"), (300, 330, "open input")], only=["Thorax"]))
    bad = np.flatnonzero(unusable(found.quality["THORAX"]))
    assert bad.tolist() == list(range(10, 21))


def test_a_recorder_left_running(tmp_path):
    """40 minutes of sleep, then 80 minutes of an open input: the EEG keeps its amplitude and nothing of it is cut."""
    random = np.random.default_rng(5)

    def signal(label: str, deviation: float) -> Made:
        on = random.normal(0, deviation * 32767 / 500, 2400 * 100)
        whole = np.concatenate([on, random.integers(-1, 2, 4800 * 100)]).round().astype(int)
        return Made(label, whole, 100, physical=("-500", "500"), limits=("-32767", "32767"))

    path = write_edf(tmp_path / "a.edf", [signal("C3-M2", 20), signal("E1-M2", 30)])
    found = prepare(path)
    for name, deviation in (("EEG_C3", 20), ("EOG_L", 30)):
        in_band = np.sqrt(40 / 50) * deviation
        assert found.iqr[name] == pytest.approx(1.349 * in_band, rel=0.05)
        assert unusable(found.quality[name]).tolist() == [False] * 80 + [True] * 160
        own = found.channels[name][: 80 * EPOCH_SAMPLES]
        assert np.abs(own).max() < 6 and own.std() == pytest.approx(1 / 1.349, rel=0.05)
        assert not found.channels[name][81 * EPOCH_SAMPLES :].any()
        assert found.provenance["channels"][name]["epochs_unusable"] == 160


def test_what_is_unusable():
    assert UNUSABLE == Quality.FLAT | Quality.DISCONNECTED | Quality.GAP
    bits = np.array(
        [0, Quality.CLIPPED, Quality.MAINS, Quality.OUT_OF_RANGE, Quality.FLAT, Quality.GAP | Quality.MAINS], np.uint8
    )
    assert unusable(bits).tolist() == [False] * 4 + [True] * 2


def test_each_kind_is_what_it_says():
    info = night().signals[0]
    assert not dead_samples("zeros", 10, info).any()
    assert np.ptp(dead_samples("open input", 1000, info)) == pytest.approx(2 * info.step)
    assert (dead_samples("range", 10, info) == info.physical_max).all()
