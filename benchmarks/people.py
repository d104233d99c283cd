"""The built-in scorer on people, from one EEG channel, beside YASA.

    python benchmarks/people.py FOLDER [--python OTHER] [--models ADDRESS ...] [--gains G ...] [--json F]

FOLDER holds ``excerptN.txt`` and ``Hypnogram_excerptN.txt`` of the DREAMS sleep spindles database (Devuyst 2005,
zenodo.org/records/2650142): half an hour of one EEG derivation (C3-A1 or CZ-A1, in uV) of eight patients, whose stages one
person scored by Rechtschaffen and Kales, a value every 5 s. An epoch of 30 s has the stage that most of its values have, S3 and
S4 as N3; where most have none it is unscored. OTHER is an interpreter with YASA (see ``realism.py``). The recordings serve for
evaluation alone: no model is trained or chosen by them, and they are not in this repository.

Excerpts of half an hour hold few stages each, so figures are over all epochs, with intervals over the eight people. A recording
is scaled by its own spread, which for an excerpt is another one than for its night: ``--gains`` also gives the figures of the
models with the scaled signal times G.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from side_by_side import STAGE_FIGURES, judged_stages, tell

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.signals.cohorts.by_hand import with_channels
from sleepfm.signals.cohorts.catalogue import load_rules
from sleepfm.signals.edf.writer import Channel, write_edf
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.tasks import TASKS

PEOPLE = 8
SECONDS = 1800
LABEL_SECONDS = 5
# Wake, S1, S2, S3 and S4, REM; movement (-1) and unknown stages (-2, -3) are no stage.
STAGES = {5: 0, 3: 1, 2: 2, 1: 3, 0: 3, 4: 4}
LIMIT = 500.0
Stages = NDArray[np.int64]


def stages_of(path: Path) -> Stages:
    """Stages [60] of a hypnogram of half an hour; -1 where most values are none."""
    values = np.loadtxt(path, skiprows=1, dtype=int)
    by_epoch = np.vectorize(lambda value: STAGES.get(value, -1))(values).reshape(-1, EPOCH_SECONDS // LABEL_SECONDS)
    counts = np.stack([(by_epoch == stage).sum(1) for stage in range(-1, len(TASKS["stage"].classes))], axis=1)
    return counts.argmax(1) - 1


def as_edf(signal: Path, path: Path) -> str:
    """Write the signal as an EDF and return its label."""
    with signal.open() as file:
        label = file.readline().strip().strip("[]")
    values = np.loadtxt(signal, skiprows=1, dtype=np.float32)
    rate = len(values) // SECONDS
    channel = Channel(label, "uV", rate, f"{-LIMIT:g}", f"{LIMIT:g}", -32768, 32767)
    write_edf(path, [channel], [values[: SECONDS * rate]], SECONDS, "00.00.00")
    return label


def prepared(path: Path, label: str) -> PreparedRecording:
    """The excerpt in the EDF ``path``, whose one signal is the EEG ``label``."""
    return prepare_night(path, with_channels(load_rules("generic"), {"EEG_C3": label}))


def ours(
    models: list[str] | None, work: Path, labels: dict[str, str], gains: list[float]
) -> tuple[list[str], list[list[Stages]]]:
    """The models' addresses (of a folder its name), and at each of ``gains`` their stages [E] by excerpt."""
    scorer = Scorer.load(models)
    found: list[list[Stages]] = [[] for _ in gains]
    for name, label in labels.items():
        night = prepared(work / f"{name}.edf", label)
        for gain, stages in zip(gains, found, strict=True):
            scaled = {channel: np.float32(gain) * signal for channel, signal in night.channels.items()}
            stages.append(scorer.score(replace(night, channels=scaled)).stages)
    addresses = [entry.address for entry in scorer.models.values()]
    return [Path(address).name if Path(address).exists() else address for address in addresses], found


def yasa(python: str, work: Path, labels: dict[str, str]) -> tuple[str, list[Stages]]:
    """Its version, and its stages [E] by excerpt, from the EEG alone."""
    program = (
        "import json, sys, logging, mne, numpy, yasa; from importlib.metadata import version; mne.set_log_level('ERROR')\n"
        "found = []\n"
        "for path, label in json.loads(sys.argv[1]):\n"
        "    raw = mne.io.read_raw_edf(path, preload=True)\n"
        "    raw = raw.resample(100) if raw.info['sfreq'] < 80 else raw\n"
        "    called = yasa.SleepStaging(raw, eeg_name=label).predict()\n"
        "    found.append([str(stage).upper() for stage in getattr(called, 'hypno', called)])\n"
        "print(json.dumps([version('yasa'), found]))\n"
    )
    asked = json.dumps([[str(work / f"{name}.edf"), label] for name, label in labels.items()])
    done = subprocess.run([python, "-W", "ignore", "-c", program, asked], stdout=subprocess.PIPE, text=True, check=True)
    version, called = json.loads(done.stdout.splitlines()[-1])
    codes = {"W": 0, "WAKE": 0, "N1": 1, "N2": 2, "N3": 3, "R": 4, "REM": 4}
    return version, [np.array([codes[stage] for stage in night]) for night in called]


def figures(truth: list[Stages], called: list[Stages]) -> dict[str, Any]:
    """Accuracy, kappa and macro-F1 with intervals over people, the recall of each stage, and who is called what."""
    found = judged_stages(truth, called)
    both = zip(truth, called, strict=True)
    unscored = sum(int(((mine[: len(theirs)] < 0) & (theirs[: len(mine)] >= 0)).sum()) for theirs, mine in both)
    return {
        "epochs": found.n_epochs,
        "unscored_by_the_model": unscored,
        **{name: asdict(found.metrics[name]) for name in STAGE_FIGURES},
        "recall": found.recall,
        "confusion": [list(row) for row in found.confusion],
    }


def main() -> None:
    """Print the figures, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", metavar="OTHER", help="interpreter with yasa")
    parser.add_argument("--models", nargs="+", metavar="ADDRESS", default=["builtin"])
    parser.add_argument("--gains", nargs="+", type=float, metavar="G", default=[], help="also at these scales")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    arguments = parser.parse_args()
    names = [f"excerpt{number}" for number in range(1, PEOPLE + 1)]
    truth = [stages_of(arguments.folder / f"Hypnogram_{name}.txt") for name in names]
    with tempfile.TemporaryDirectory(prefix="people-") as folder:
        work = Path(folder)
        labels = {name: as_edf(arguments.folder / f"{name}.txt", work / f"{name}.edf") for name in names}
        addresses, (called, *others) = ours(arguments.models, work, labels, [1.0, *arguments.gains])
        result: dict[str, Any] = {"machine": describe(), "models": addresses, "ours": figures(truth, called)}
        if others:
            scales = (f"{gain:g}" for gain in arguments.gains)
            result["ours_at_other_scales"] = {scale: figures(truth, at) for scale, at in zip(scales, others, strict=True)}
        if arguments.python:
            version, theirs = yasa(arguments.python, work, labels)
            both = figures(called, theirs)
            result |= {"yasa_version": version, "yasa": figures(truth, theirs), "kappa_of_both": both["kappa"]}
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
