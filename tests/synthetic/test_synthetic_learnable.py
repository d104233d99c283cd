"""Something can be learnt from the synthetic cohort, and not everything.

A plain classifier on hand-made features of EEG, EOG, EMG and ECG finds stages, apneas and hypopneas of unseen
subjects.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import find_peaks, welch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS
from sleepfm.synthetic.layout import load_layout
from sleepfm.synthetic.night import Night, draw_night

CHANNELS = {channel.label: channel for channel in load_layout("shhs1").channels}
BANDS = ((0.5, 2), (2, 4), (4, 8), (8, 12), (12, 15), (15, 30))
TRAIN, TEST = range(16), range(16, 24)


def recorded(night: Night, label: str) -> np.ndarray:
    """What an EDF holds, without amplifier gain: digitised, unit interquartile range; [E, samples]."""
    values = CHANNELS[label].digitise(night.signals[label]).astype(np.float32)
    low, high = np.percentile(values, (25, 75))
    return ((values - np.median(values)) / (high - low)).reshape(len(night.stages), -1)


def bands(values: np.ndarray, rate: int) -> np.ndarray:
    frequency, density = welch(values, rate, nperseg=4 * rate, axis=1)
    return np.log(np.stack([density[:, (frequency >= low) & (frequency < high)].mean(axis=1) for low, high in BANDS], axis=1))


def heart(values: np.ndarray) -> np.ndarray:
    """Level and swing of the rate, and of the R amplitude, within each epoch."""
    peaks, _ = find_peaks(values.ravel(), height=0.6 * np.percentile(values, 99.5), distance=45)
    times, size = peaks[1:] / 125, values.ravel()[peaks[1:]]
    rate = 60 * 125 / np.diff(peaks)
    features = []
    for epoch in range(len(values)):
        grid = np.arange(EPOCH_SECONDS * epoch, EPOCH_SECONDS * (epoch + 1), 0.5)
        beats = np.interp(grid, times, rate)
        smooth = np.convolve(beats, np.full(8, 1 / 8), mode="valid")
        amplitude = np.interp(grid, times, size)
        swing = np.abs(np.fft.rfft(amplitude - amplitude.mean())) ** 2
        quiet = min(amplitude[start : start + 20].std() for start in range(0, 41, 5))
        features.append(
            [
                beats.mean(),
                np.ptp(smooth),
                smooth[-1] - smooth[0],
                smooth.argmin(),
                smooth.argmax(),
                beats.std(),
                amplitude.std() / amplitude.mean(),
                swing[5:11].sum() / swing[1:].sum(),
                quiet,
            ]
        )
    return np.array(features)


def features(night: Night) -> np.ndarray:
    left, right = recorded(night, "EOG(L)"), recorded(night, "EOG(R)")
    chin = recorded(night, "EMG")
    tone = np.log(chin.reshape(len(chin), EPOCH_SECONDS, -1).std(axis=2) + 1e-3)
    eeg = recorded(night, "EEG")
    fast = np.abs(np.diff(eeg, axis=1, prepend=0)).reshape(len(eeg), EPOCH_SECONDS, -1).mean(axis=2)
    return np.column_stack(
        [
            bands(eeg, 125),
            fast.max(axis=1) / np.median(fast, axis=1),
            bands(left - right, 50)[:, :3],
            (left * right).mean(axis=1) / (left.std(axis=1) * right.std(axis=1)),
            tone.mean(axis=1),
            tone.std(axis=1),
            tone.max(axis=1) - np.median(tone, axis=1),
            heart(recorded(night, "ECG")),
        ]
    )


def has_event(night: Night, kinds: tuple[str, ...]) -> np.ndarray:
    """Epochs with at least 10 s of an event."""
    label = np.zeros(len(night.stages), dtype=bool)
    for event in night.events:
        for epoch in range(int(event.onset // EPOCH_SECONDS), int(event.end // EPOCH_SECONDS) + 1):
            start = EPOCH_SECONDS * epoch
            overlap = min(event.end, start + EPOCH_SECONDS) - max(event.onset, start)
            if event.kind in kinds and overlap >= 10.0:
                label[epoch] = True
    return label


@pytest.mark.slow
def test_unseen_subjects_are_scored_well_but_not_perfectly():
    nights = [draw_night(1, number, 240) for number in (*TRAIN, *TEST)]
    inputs = [features(night) for night in nights]
    train, test = np.concatenate(inputs[: len(TRAIN)]), np.concatenate(inputs[len(TRAIN) :])

    def fitted(labels: list[np.ndarray]) -> tuple[HistGradientBoostingClassifier, np.ndarray]:
        model = HistGradientBoostingClassifier(max_iter=80, random_state=0)
        return model.fit(train, np.concatenate(labels[: len(TRAIN)])), np.concatenate(labels[len(TRAIN) :])

    model, truth = fitted([night.stages for night in nights])
    assert 0.70 < cohen_kappa_score(truth, model.predict(test)) < 0.92
    for kinds, least in ((APNEA_TYPES, 0.85), (("hypopnea",), 0.75)):
        model, truth = fitted([has_event(night, kinds) for night in nights])
        assert least < roc_auc_score(truth, model.predict_proba(test)[:, 1]) < 0.98
