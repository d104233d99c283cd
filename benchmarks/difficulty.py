"""How hard the synthetic nights are for a simple model, which sees one epoch of 30 s at a time.

    python benchmarks/difficulty.py [--subjects N] [--hours H] [--seed S] [--json F]

Gradient-boosted trees learn stages, apneas and hypopneas from two dozen hand-made features of clean nights (band powers, eye
movement, muscle tone, heart rate and R amplitude), from all of them and from those of EEG, EOG, EMG or ECG alone. The first three
quarters of the people train them, the others judge them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from scipy.signal import find_peaks, welch
from side_by_side import tell
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.synthetic.layout import load_layout
from sleepfm.synthetic.night import Night, draw_night

Floats = NDArray[np.floating]
CHANNELS = {channel.label: channel for channel in load_layout("shhs1").channels}
BANDS = ((0.5, 2), (2, 4), (4, 8), (8, 12), (12, 15), (15, 30))
# Of an event, in an epoch that has it.
LEAST_SECONDS = 10.0
EVENTS = {"apnea": APNEA_TYPES, "hypopnea": ("hypopnea",)}


def recorded(night: Night, label: str) -> Floats:
    """What an EDF holds, without amplifier gain: digitised, unit interquartile range; [E, samples]."""
    values = CHANNELS[label].digitise(night.signals[label]).astype(np.float32)
    low, high = np.percentile(values, (25, 75))
    return ((values - np.median(values)) / (high - low)).reshape(len(night.stages), -1)


def bands(values: Floats, rate: int) -> Floats:
    """Log powers of :data:`BANDS` [E, 6] of epochs [E, samples]."""
    frequency, density = welch(values, rate, nperseg=4 * rate, axis=1)
    return np.log(np.stack([density[:, (frequency >= low) & (frequency < high)].mean(axis=1) for low, high in BANDS], axis=1))


def heart(values: Floats) -> Floats:
    """Level and swing of the rate, and of the R amplitude, within each epoch of an ECG [E, samples at 125 Hz]; [E, 9]."""
    peaks, _ = find_peaks(values.ravel(), height=0.6 * np.percentile(values, 99.5), distance=45)
    times, size = peaks[1:] / 125, values.ravel()[peaks[1:]]
    rate = 60 * 125 / np.diff(peaks)
    found = []
    for epoch in range(len(values)):
        grid = np.arange(EPOCH_SECONDS * epoch, EPOCH_SECONDS * (epoch + 1), 0.5)
        beats = np.interp(grid, times, rate)
        smooth = np.convolve(beats, np.full(8, 1 / 8), mode="valid")
        amplitude = np.interp(grid, times, size)
        swing = np.abs(np.fft.rfft(amplitude - amplitude.mean())) ** 2
        quiet = min(amplitude[start : start + 20].std() for start in range(0, 41, 5))
        level = [beats.mean(), np.ptp(smooth), smooth[-1] - smooth[0], smooth.argmin(), smooth.argmax(), beats.std()]
        found.append([*level, amplitude.std() / amplitude.mean(), swing[5:11].sum() / swing[1:].sum(), quiet])
    return np.array(found)


def features(night: Night) -> dict[str, Floats]:
    """Features [E, F] of each modality."""
    left, right = recorded(night, "EOG(L)"), recorded(night, "EOG(R)")
    chin, eeg = recorded(night, "EMG"), recorded(night, "EEG")
    tone = np.log(chin.reshape(len(chin), EPOCH_SECONDS, -1).std(axis=2) + 1e-3)
    fast = np.abs(np.diff(eeg, axis=1, prepend=0)).reshape(len(eeg), EPOCH_SECONDS, -1).mean(axis=2)
    alike = (left * right).mean(axis=1) / (left.std(axis=1) * right.std(axis=1))
    return {
        "EEG": np.column_stack([bands(eeg, 125), fast.max(axis=1) / np.median(fast, axis=1)]),
        "EOG": np.column_stack([bands(left - right, 50)[:, :3], alike]),
        "EMG": np.column_stack([tone.mean(axis=1), tone.std(axis=1), tone.max(axis=1) - np.median(tone, axis=1)]),
        "ECG": heart(recorded(night, "ECG")),
    }


def has_event(night: Night, kinds: Sequence[str]) -> NDArray[np.bool_]:
    """Epochs [E] with at least 10 s of an event of ``kinds``."""
    label = np.zeros(len(night.stages), dtype=bool)
    for event in night.events:
        for epoch in range(int(event.onset // EPOCH_SECONDS), int(event.end // EPOCH_SECONDS) + 1):
            start = EPOCH_SECONDS * epoch
            overlap = min(event.end, start + EPOCH_SECONDS) - max(event.onset, start)
            if event.kind in kinds and overlap >= LEAST_SECONDS:
                label[epoch] = True
    return label


def judged(nights: Sequence[Night], found_in: Sequence[dict[str, Floats]], modalities: Sequence[str], cut: int) -> dict[str, Any]:
    """What trees that learn from the ``nights`` before ``cut`` reach on the others, by the features of ``modalities`` that were
    ``found_in`` each.
    """
    inputs = [np.column_stack([own[name] for name in modalities]) for own in found_in]
    train, test = np.concatenate(inputs[:cut]), np.concatenate(inputs[cut:])
    sleep = np.concatenate([night.stages for night in nights[cut:]]) != Stage.W

    def fitted(labels: Sequence[NDArray[Any]]) -> tuple[HistGradientBoostingClassifier, NDArray[Any]]:
        model = HistGradientBoostingClassifier(max_iter=80, random_state=0)
        return model.fit(train, np.concatenate(labels[:cut])), np.concatenate(labels[cut:])

    model, truth = fitted([night.stages for night in nights])
    called = model.predict(test)
    by_stage = f1_score(truth, called, labels=range(len(STAGE_NAMES)), average=None, zero_division=0)
    found: dict[str, Any] = {
        "stage": {
            "kappa": float(cohen_kappa_score(truth, called)),
            "f1": dict(zip(STAGE_NAMES, map(float, by_stage), strict=True)),
            "majority": float(np.bincount(truth).max() / len(truth)),
        }
    }
    for name, kinds in EVENTS.items():
        model, truth = fitted([has_event(night, kinds) for night in nights])
        chance = model.predict_proba(test)[:, 1]
        found[name] = {
            "auroc": float(roc_auc_score(truth, chance)),
            "auroc_in_sleep": float(roc_auc_score(truth[sleep], chance[sleep])),
            "prevalence": float(truth.mean()),
        }
    return found


def main() -> None:
    """Print the figures, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--hours", type=float, default=3.0, metavar="H", help="of each night (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    arguments = parser.parse_args()
    epochs = round(3600 * arguments.hours / EPOCH_SECONDS)
    nights = [draw_night(arguments.seed, number, epochs) for number in range(arguments.subjects)]
    found_in = [features(night) for night in nights]
    modalities, cut = list(found_in[0]), 3 * len(nights) // 4
    result = {
        "machine": describe(),
        "subjects": arguments.subjects,
        "hours": arguments.hours,
        "features": sum(values.shape[1] for values in found_in[0].values()),
        "all": judged(nights, found_in, modalities, cut),
        **{name: judged(nights, found_in, [name], cut) for name in modalities},
    }
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
