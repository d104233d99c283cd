"""The synthetic nights show, in size and direction, what the scoring rules say they must."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly, welch

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.synthetic.drawn_events import Event, draw_position, draw_respiratory_events, is_respiratory
from sleepfm.synthetic.fit import dreem_nights, fit
from sleepfm.synthetic.hypnogram import draw_hypnogram
from sleepfm.synthetic.layout import SOURCES
from sleepfm.synthetic.night import Night, draw_night
from sleepfm.synthetic.statistics import statistics
from sleepfm.synthetic.subject import draw_subject

RATE = dict(SOURCES.values())


@pytest.fixture(scope="module")
def nights() -> list[Night]:
    return [draw_night(3, number, 180) for number in range(12)]


def by_stage(nights: list[Night], values: list[np.ndarray]) -> np.ndarray:
    """Median over epochs of per-epoch ``values``, one for each stage."""
    stages, pooled = np.concatenate([night.stages for night in nights]), np.concatenate(values)
    return np.array([np.median(pooled[stages == stage]) for stage in range(5)])


def epochs(night: Night, label: str) -> np.ndarray:
    return night.signals[label].reshape(len(night.stages), -1)


def power(night: Night, label: str, low: float, high: float) -> np.ndarray:
    frequency, density = welch(epochs(night, label), RATE[label], nperseg=4 * RATE[label], axis=1)
    return density[:, (frequency >= low) & (frequency < high)].mean(axis=1)


def test_statistics_are_what_the_fit_prints(shared_data):
    printed = fit(shared_data / "dreem-dod-hypnograms", shared_data / "mitbih-slpdb")
    shipped = statistics().model_dump()
    assert printed["hypnogram"] == shipped["hypnogram"]
    assert printed["respiration"] == shipped["respiration"]


def test_whole_nights_have_the_shares_of_the_scored_ones(shared_data):
    real = np.concatenate([night[np.flatnonzero(night > 0)[0] :] for night in dreem_nights(shared_data / "dreem-dod-hypnograms")])
    drawn = np.concatenate([draw_hypnogram(draw_subject(0, number), 960) for number in range(60)])
    expected = np.bincount(real[real >= 0], minlength=5) / (real >= 0).sum()
    found = np.bincount(drawn, minlength=5) / len(drawn)
    # W includes the time before sleep; every night must hold all stages, which lifts the rare ones a little.
    assert np.abs(found - expected).max() < 0.08


@pytest.mark.parametrize("hours", [0.5, 1.0, 2.0, 3.0, 4.0, 8.0])
def test_any_length_holds_all_stages(hours):
    n_epochs = round(hours * 120)
    for number in range(16):
        stages = draw_hypnogram(draw_subject(1, number), n_epochs)
        shares = np.bincount(stages, minlength=5) / n_epochs
        assert shares.min() > 0.01, (number, dict(zip(STAGE_NAMES, shares, strict=True)))


def test_deep_sleep_comes_early_and_rem_late():
    nights = np.stack([draw_hypnogram(draw_subject(2, number), 960) for number in range(60)])
    place = np.arange(960) / 960
    mean = {stage: place[np.nonzero(nights == stage)[1]].mean() for stage in (Stage.N3, Stage.REM)}
    assert mean[Stage.N3] < 0.45 < 0.55 < mean[Stage.REM]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 5000), n_epochs=st.integers(13, 90))
def test_respiratory_events_are_in_sleep_apart_and_long_enough(seed, number, n_epochs):
    night = draw_night(seed, number, n_epochs)
    assert len(night.stages) == n_epochs
    respiratory = [event for event in night.events if is_respiratory(event)]
    for event in respiratory:
        covered = night.stages[int(event.onset // EPOCH_SECONDS) : int(event.end // EPOCH_SECONDS) + 1]
        assert (covered > Stage.W).all()
        assert event.duration >= 10.0
    for before, after in itertools.pairwise(respiratory):
        assert after.onset - before.end >= 10.0
    for event in night.events:
        assert event.onset >= 0.0 and event.duration > 0.0
        if event.kind == "desaturation":
            assert event.baseline - event.nadir >= 3.0
    for label, signal in night.signals.items():
        assert signal.shape == (n_epochs * EPOCH_SECONDS * RATE[label],)
        assert np.isfinite(signal).all()


def test_severity_spreads_over_a_small_cohort():
    subjects = [draw_subject(5, number) for number in range(16)]
    index = np.array([subject.index for subject in subjects])
    assert (index < 5).any() and (index > 30).any() and 8 < np.median(index) < 25


def test_drawn_index_follows_the_subject():
    aimed, found = [], []
    for number in range(16):
        subject = draw_subject(1, number)
        stages = draw_hypnogram(subject, 960)
        events = draw_respiratory_events(subject, stages, draw_position(subject, 960 * EPOCH_SECONDS))
        aimed.append(subject.index)
        found.append(len(events) / ((stages > Stage.W).sum() / 120))
    assert np.corrcoef(aimed, found)[0, 1] > 0.95
    assert sum(found) == pytest.approx(sum(aimed), rel=0.2)


def test_eeg_spectrum_by_stage(nights):
    alpha = by_stage(nights, [power(night, "EEG", 8, 12) / power(night, "EEG", 1, 30) for night in nights])
    assert alpha.argmax() == Stage.W
    delta = by_stage(nights, [power(night, "EEG", 0.5, 2) for night in nights])
    assert delta.argmax() == Stage.N3
    assert delta[Stage.N3] > 4 * delta[Stage.REM]
    theta = by_stage(nights, [power(night, "EEG", 4, 8) / power(night, "EEG", 8, 30) for night in nights])
    assert theta[Stage.N1] > 2 * theta[Stage.W]
    # Spindles: the most of a 1-s window's 11-16 Hz power over the epoch's usual.
    bursts = []
    for night in nights:
        parts = epochs(night, "EEG").reshape(-1, 125)
        frequency, density = welch(parts, 125, nperseg=125, axis=1)
        sigma = density[:, (frequency >= 12) & (frequency <= 15)].mean(axis=1).reshape(-1, 30)
        bursts.append(sigma.max(axis=1) / np.median(sigma, axis=1))
    burst = by_stage(nights, bursts)
    assert burst.argmax() == Stage.N2


def test_slow_waves_are_large(nights):
    spans = [np.ptp(epochs(night, "EEG").reshape(len(night.stages), 15, -1), axis=2).mean(axis=1) for night in nights]
    assert by_stage(nights, spans)[Stage.N3] > 75.0


def test_channels_of_a_pair_correlate_but_differ(nights):
    for night in nights:
        assert 0.65 < np.corrcoef(night.signals["EEG"], night.signals["EEG(sec)"])[0, 1] < 0.92


def test_eyes_move_in_antiphase_when_dreaming_and_drowsy(nights):
    together = [
        np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(epochs(night, "EOG(L)"), epochs(night, "EOG(R)"), strict=True)])
        for night in nights
    ]
    median = by_stage(nights, together)
    assert median[Stage.N1] < -0.5 and median[Stage.REM] < -0.3 and median[Stage.N3] > 0.3


def test_references_of_the_eog_change_sign_as_on_a_head(nights):
    """Slow waves are largest in front, a blink is positive above the eyes and negative below them."""
    slow, blinks = {}, {}
    for night in nights:
        s = night.signals
        below = s["EOG(R)"] - np.float32(1.25) * s["blinks"]
        eyes = {"mastoid": (s["EOG(L)"], s["EOG(R)"]), "Fpz": (s["EOG(L)"] - s["Fpz"], below - s["Fpz"])}
        eyes["nasion"] = (s["EOG(L)"] - s["nasion"], below - s["nasion"])
        deep, blinking = np.repeat(night.stages == Stage.N3, 1500), s["blinks"] > 30.0
        eeg = resample_poly(s["EEG"] + s["EEG(sec)"], 2, 5)
        for reference, pair in eyes.items():
            if deep.sum() > 5 * 1500:
                slow.setdefault(reference, []).append([np.corrcoef(eeg[deep], side[deep])[0, 1] for side in pair])
            if blinking.sum() > 500:
                blinks.setdefault(reference, []).append([side[blinking].mean() for side in pair])
    slow, blinks = ({name: np.array(rows) for name, rows in found.items()} for found in (slow, blinks))
    assert len(slow["mastoid"]) > 5 and (slow["mastoid"] > 0.5).all()
    assert (slow["Fpz"] < -0.5).all() and (slow["nasion"] < -0.5).all()
    # Below one eye and above the other: antiphase; below both against the midline: in phase.
    assert (blinks["mastoid"][:, 0] < 0).all() and (blinks["mastoid"][:, 1] > 30).all()
    assert (blinks["Fpz"] < -20).all() and (blinks["nasion"] < -20).all()


def test_chin_tone_falls_from_wake_to_rem(nights):
    tone = by_stage(nights, [np.sqrt((epochs(night, "EMG") ** 2).mean(axis=1)) for night in nights])
    order = [Stage.W, Stage.N1, Stage.N2, Stage.N3, Stage.REM]
    assert (np.diff(tone[order]) < 0).all()


def around(nights: list[Night], label: str, kinds: tuple[str, ...], before: int, after: int) -> np.ndarray:
    """Mean of a signal from ``before`` s before to ``after`` s after the end of events of ``kinds``."""
    rate, pieces = RATE[label], []
    for night in nights:
        for event in night.events:
            first, last = round((event.end - before) * rate), round((event.end + after) * rate)
            if event.kind in kinds and first >= 0 and last <= len(night.signals[label]):
                pieces.append(night.signals[label][first:last])
    assert len(pieces) > 20
    return np.mean(pieces, axis=0)


def test_heart_slows_in_apnea_and_races_after(nights):
    apnea = around(nights, "H.R.", APNEA_TYPES, 40, 30)
    hypopnea = around(nights, "H.R.", ("hypopnea",), 40, 30)
    assert apnea[35:42].min() < apnea[:10].mean() - 1.5
    assert apnea[42:60].max() > apnea[35:42].min() + 6.0
    assert 2.0 < np.ptp(hypopnea) < np.ptp(apnea)


def test_saturation_falls_after_the_event(nights):
    apnea, hypopnea = (around(nights, "SaO2", kinds, 20, 50) for kinds in (APNEA_TYPES, ("hypopnea",)))
    assert 5 <= apnea.argmin() - 20 <= 40
    assert np.ptp(apnea) > 2.0
    assert np.ptp(hypopnea) < np.ptp(apnea)


def within(night: Night, event: Event, label: str) -> float:
    rate = RATE[label]
    return float(night.signals[label][round((event.onset + 2) * rate) : round((event.end - 1) * rate)].std())


def test_flow_and_effort_by_type_of_event(nights):
    usual = {label: np.median([night.signals[label].std() for night in nights]) for label in ("NEW AIR", "THOR RES")}
    seen: dict[str, list[tuple[float, float]]] = {}
    for night in nights:
        for event in filter(is_respiratory, night.events):
            sizes = tuple(within(night, event, label) / usual[label] for label in usual)
            seen.setdefault(event.kind, []).append((sizes[0], sizes[1]))
    flow, effort = ({kind: float(np.median(sizes, axis=0)[k]) for kind, sizes in seen.items()} for k in (0, 1))
    assert flow["obstructive_apnea"] < 0.1 and flow["central_apnea"] < 0.1 and flow["mixed_apnea"] < 0.1
    assert 0.2 < flow["hypopnea"] < 0.8
    assert effort["central_apnea"] < 0.15 < 0.7 < effort["obstructive_apnea"]


def test_light_position_and_codes(nights):
    for night in nights:
        assert set(np.unique(night.signals["LIGHT"])) <= {0.0, 1.0}
        assert set(np.unique(night.signals["POSITION"])) <= {0.0, 1.0, 2.0, 3.0}
        scored = night.codes != 6
        back = np.array([0, 1, 2, 3, 3, 4])[night.codes[scored]]
        assert (back == night.stages[scored]).all()
        assert scored.mean() > 0.97
