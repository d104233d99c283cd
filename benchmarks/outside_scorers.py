"""Two scorers that nobody here wrote, over recordings and their hypnograms; run by ``realism.py`` in an interpreter that has them.

    python benchmarks/outside_scorers.py FOLDER

FOLDER holds ``NAME.edf`` and ``NAME.json`` (``stages`` by epoch as 0 to 4 or -1, ``channels`` by role, ``age``). Prints one JSON
object: the versions, and by name the stages of YASA (Vallat and Walker 2021, eLife 10:e70092; trained on real people) and the
respiratory events of psgscoring (rules of the AASM manual), which gets the true hypnogram, not YASA's.
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

NAMES = ("W", "N1", "N2", "N3", "R")
PROFILE = "aasm_v3_rec"
RESPIRATORY = ("flow", "thorax", "abdomen", "spo2")


def score_stages(raw: mne.io.BaseRaw, channels: dict[str, str], age: float) -> list[int]:
    """Stages as 0 to 4 by epoch, from one EEG, one EOG and the chin."""
    scorer = yasa.SleepStaging(
        raw, eeg_name=channels["eeg"], eog_name=channels["eog"], emg_name=channels["emg"], metadata={"age": age, "male": True}
    )
    found = scorer.predict()
    found = getattr(found, "hypno", found)
    codes = {"W": 0, "WAKE": 0, "N1": 1, "N2": 2, "N3": 3, "R": 4, "REM": 4}
    return [codes[str(stage).upper()] for stage in found]


def score_events(raw: mne.io.BaseRaw, channels: dict[str, str], told: dict[str, Any]) -> dict[str, Any]:
    """Events as [type, onset, duration] in s, what the scorer counts, and what it remarks about the belts."""
    chosen = {role: channels[role] for role in RESPIRATORY}
    # MNE turns a flow declared in uV into 1e-5 V, which the scorer takes for a dead channel: its limit is absolute.
    raw.apply_function(lambda x: x / np.percentile(np.abs(x), 95), picks=[chosen[role] for role in RESPIRATORY[:3]])
    hypnogram = [NAMES[stage] if stage >= 0 else "W" for stage in told["stages"]]
    arousals = [{"onset_s": onset, "duration_s": duration} for onset, duration in told["arousals"]]
    found = psgscoring.run_pneumo_analysis(
        raw, hypnogram, channel_map=chosen, scoring_profile=PROFILE, arousal_events=arousals
    )
    events = found["respiratory"]["events"]
    return {
        "events": [[event["type"], float(event["onset_s"]), float(event["duration_s"])] for event in events],
        "ahi": found["respiratory"]["summary"]["ahi_total"],
        "pair": found["signal_quality"],
        "remarks": list((found["signal_quality"] or {}).get("warnings", [])),
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    mne.set_log_level("ERROR")
    folder = Path(sys.argv[1])
    nights: dict[str, Any] = {}
    for truth in sorted(folder.glob("*.json")):
        told = json.loads(truth.read_text())
        raw = mne.io.read_raw_edf(truth.with_suffix(".edf"), preload=True)
        nights[truth.stem] = {
            "stages": score_stages(raw, told["channels"], told["age"]),
            **score_events(raw, told["channels"], told["stages"]),
        }
        print(truth.stem, file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("yasa", "psgscoring", "lightgbm", "scikit-learn", "mne")}
    print(json.dumps({"versions": versions, "profile": PROFILE, "nights": nights}))


if __name__ == "__main__":
    main()
