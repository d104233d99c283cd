"""Two scorers that nobody here wrote, over recordings; ``realism.py`` and ``side_by_side.py`` run it in an interpreter with them.

    python benchmarks/outside_scorers.py FOLDER

FOLDER holds ``NAME.edf`` and ``NAME.json``: ``channels`` by role, ``age``, ``stages`` by epoch (0 to 4, -1 unscored) and
``arousals`` as [onset, duration] in s. Prints one JSON object: versions, and by name the stages of YASA (Vallat and Walker 2021,
eLife 10:e70092; trained on real people) and the respiratory events of psgscoring (rules of the AASM manual). Psgscoring is given
stages and arousals, so that its answer does not hang on those of another.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mne
import numpy as np
import psgscoring
import yasa

CODES = {"W": 0, "WAKE": 0, "N1": 1, "N2": 2, "N3": 3, "R": 4, "REM": 4}
NAMES = ("W", "N1", "N2", "N3", "R")
PROFILE = "aasm_v3_rec"
RESPIRATORY = ("flow", "thorax", "abdomen", "spo2")


def read(path: Path, labels: list[str]) -> mne.io.BaseRaw:
    """These signals alone: MNE would bring slow ones to the rate of the fastest."""
    return mne.io.read_raw_edf(path, include=labels, preload=True)


def score_stages(path: Path, channels: dict[str, str], age: float, roles: tuple[str, ...] = ("eeg", "eog", "emg")) -> list[int]:
    """Stages as 0 to 4 by epoch, from one channel for each of ``roles``."""
    raw = read(path, [channels[role] for role in roles])
    names = {f"{role}_name": channels[role] for role in roles}
    scorer = yasa.SleepStaging(raw, **names, metadata={"age": age, "male": True})
    found = scorer.predict()
    return [CODES[str(stage).upper()] for stage in getattr(found, "hypno", found)]


def score_events(path: Path, channels: dict[str, str], told: dict[str, Any]) -> dict[str, Any]:
    """Events as [type, onset, duration] in s, the scorer's AHI, and what it remarks about the sensors."""
    chosen = {role: channels[role] for role in RESPIRATORY}
    raw = read(path, list(chosen.values()))
    # MNE gives a flow declared in uV as 1e-5 V, which the scorer takes for a dead sensor: its limit is absolute.
    sensors = [chosen[role] for role in RESPIRATORY[:3]]
    raw.apply_function(lambda values: values / max(float(np.percentile(np.abs(values), 95)), 1e-12), picks=sensors)
    epochs = int(raw.times[-1] // 30) + 1
    stages = (told["stages"] + [-1] * epochs)[:epochs]
    found = psgscoring.run_pneumo_analysis(
        raw,
        [NAMES[stage] if stage >= 0 else "W" for stage in stages],
        channel_map=chosen,
        scoring_profile=PROFILE,
        arousal_events=[{"onset_s": onset, "duration_s": duration} for onset, duration in told["arousals"]],
    )
    respiratory = found["respiratory"]
    return {
        "events": [[event["type"], float(event["onset_s"]), float(event["duration_s"])] for event in respiratory["events"]],
        "ahi": respiratory["summary"].get("ahi_total"),
        "remarks": list((found.get("channel_quality") or {}).get("montage_warnings", [])),
        "rejected": {
            "flow_not_still": len(respiratory.get("rejected_apneas", [])),
            **_reasons(respiratory.get("rejected_hypopneas", [])),
        },
    }


def _reasons(rejected: list[dict[str, Any]]) -> dict[str, int]:
    """Candidates for hypopneas that it dropped, by the beginning of its reason."""
    counts: dict[str, int] = {}
    for event in rejected:
        words = str(event.get("reject_reason", "unknown")).split("_")[:2]
        counts["_".join(words)] = counts.get("_".join(words), 0) + 1
    return counts


def main() -> None:
    """Score the folder."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    mne.set_log_level("ERROR")
    nights: dict[str, Any] = {}
    for truth in sorted(Path(sys.argv[1]).glob("*.json")):
        told, path = json.loads(truth.read_text()), truth.with_suffix(".edf")
        nights[truth.stem] = {
            "stages": score_stages(path, told["channels"], told["age"]),
            "stages_of_eeg": score_stages(path, told["channels"], told["age"], ("eeg",)),
            **score_events(path, told["channels"], told),
        }
        print(f"scored {truth.stem}", file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("yasa", "psgscoring", "lightgbm", "scikit-learn", "mne")}
    print(json.dumps({"versions": versions, "profile": PROFILE, "nights": nights}))


if __name__ == "__main__":
    main()
