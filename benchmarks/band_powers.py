"""What synthetic nights teach of people's sleep, whatever the model: trees on band powers learn from shards and stage people.

    python benchmarks/band_powers.py SHARDS FOLDER [--people N] [--json F]

SHARDS is a data set of ``configs/synthetic/train.yaml``, such as ``runs/weights/shards``; its people of ``label`` (at most N)
train gradient-boosted trees, those of ``val`` judge them. FOLDER holds the excerpts of eight people, see ``people.py``, who train
nothing. The trees see one EEG channel of an epoch, what is around it, and both relative to the recording, in the manner of YASA
(Vallat and Walker 2021, eLife 10:e70092). What they lose from ``val`` to people is what the nights lack; what a network loses
besides is its own. A minute on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from people import PEOPLE, as_edf, figures, prepared, stages_of
from scipy.signal import butter, hilbert, sosfiltfilt, welch
from scipy.stats import kurtosis, skew
from side_by_side import tell
from sklearn.ensemble import HistGradientBoostingClassifier

from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ
from sleepfm.data.dataset import Dataset
from sleepfm.data.in_order import iter_record

Floats = NDArray[np.float64]
EEG = ("EEG_C3", "EEG_C4")
BANDS = ((0.4, 1), (1, 4), (4, 8), (8, 12), (12, 16), (16, 30))
# Epochs whose mean, weighted by a triangle, is what is around one: seven and a half minutes.
AROUND = 15


def filtered(signal: Floats, low: float, high: float) -> Floats:
    """Zero-phase band pass of [T]."""
    return sosfiltfilt(butter(4, [low, high], "band", fs=RATE_HZ, output="sos"), signal)


def of_epochs(signal: Floats) -> Floats:
    """Band powers, size, shape and bursts of the epochs of ``signal`` [T] at 100 Hz, [E, 17]."""
    n = len(signal) // EPOCH_SAMPLES
    signal = signal[: n * EPOCH_SAMPLES].astype(np.float64)
    wide, sigma, slow = (filtered(signal, *band).reshape(n, EPOCH_SAMPLES) for band in ((0.4, 30), (11, 16), (0.4, 2)))
    hertz, power = welch(wide, RATE_HZ, nperseg=5 * RATE_HZ)
    bands = [power[:, (hertz >= low) & (hertz < high)].sum(axis=1) + 1e-9 for low, high in BANDS]
    total = np.sum(bands, axis=0)
    envelope = np.abs(hilbert(sigma))
    mobility = np.sqrt(np.diff(wide).var(axis=1) / (wide.var(axis=1) + 1e-9))
    crossings = (wide[:, 1:] * wide[:, :-1] < 0).mean(axis=1)
    facts = [np.log(band / total) for band in bands] + [np.log(band) for band in (bands[1], bands[4], bands[5], total)]
    facts += [mobility, crossings, kurtosis(wide, axis=1), skew(wide, axis=1)]
    facts += [np.log(np.percentile(envelope, 95, axis=1) / (np.median(envelope, axis=1) + 1e-9) + 1e-9)]
    facts += [np.log(np.ptp(slow, axis=1) + 1e-9), np.log(np.percentile(np.abs(slow), 90, axis=1) + 1e-9)]
    return np.nan_to_num(np.stack(facts, axis=1))


def with_surroundings(facts: Floats) -> Floats:
    """``facts`` [E, F], what is around each epoch, and both relative to the recording, [E, 4 F]."""
    triangle = np.bartlett(AROUND + 2)[1:-1]
    padded = np.pad(facts, ((AROUND // 2, AROUND // 2), (0, 0)), mode="edge")
    around = np.stack([np.convolve(column, triangle / triangle.sum(), "valid") for column in padded.T], axis=1)
    parts = [facts, around]
    for part in (facts, around):
        low, high = np.percentile(part, [5, 95], axis=0)
        parts.append((part - np.median(part, axis=0)) / (high - low + 1e-9))
    return np.concatenate(parts, axis=1)


def of_dataset(dataset: Dataset, split: str, most: int) -> list[tuple[Floats, NDArray[np.int64]]]:
    """Facts and stages of the first ``most`` recordings of ``split``, from the first EEG that each has."""
    found = []
    for row in dataset.select(split, EEG)[:most]:
        record = dataset.records[row]
        channel = next(name for name in EEG if name in record.channels)
        batches = list(iter_record(dataset, record.record, [channel], length=1, windows=256, labels=("stage",)))
        signal = np.concatenate([batch.signals.numpy().reshape(-1) for batch in batches])
        stages = np.concatenate([batch.labels["stage"].numpy().reshape(-1) for batch in batches])
        found.append((with_surroundings(of_epochs(signal)), stages))
    return found


def of_people(folder: Path) -> list[Floats]:
    """Facts of each excerpt."""
    found = []
    with tempfile.TemporaryDirectory(prefix="people-") as work:
        for number in range(1, PEOPLE + 1):
            path = Path(work) / f"{number}.edf"
            label = as_edf(folder / f"excerpt{number}.txt", path)
            found.append(with_surroundings(of_epochs(prepared(path, label).channels["EEG_C3"])))
    return found


def main() -> None:
    """Print the figures, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=64, metavar="N", help="most people to learn from (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    arguments = parser.parse_args()
    dataset = Dataset.open(arguments.shards)
    learnt, judged = (of_dataset(dataset, split, arguments.people) for split in ("label", "val"))
    facts, stages = (np.concatenate(parts) for parts in zip(*learnt, strict=True))
    trees = HistGradientBoostingClassifier(class_weight="balanced", random_state=0)
    trees.fit(facts[stages >= 0], stages[stages >= 0])
    truth = [stages_of(arguments.folder / f"Hypnogram_excerpt{number}.txt") for number in range(1, PEOPLE + 1)]
    result: dict[str, Any] = {
        "machine": describe(),
        "dataset_digest": dataset.description["digest"],
        "learnt_from": len(learnt),
        "val": figures([stages for _, stages in judged], [trees.predict(own) for own, _ in judged]),
        "people": figures(truth, [trees.predict(own) for own in of_people(arguments.folder)]),
    }
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
