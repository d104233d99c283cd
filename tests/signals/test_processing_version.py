"""Samples that change need another version of the processing, or a build that goes on would mix two."""

from __future__ import annotations

import numpy as np
from made_edf import Made, noise, write_edf

from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.prepare import PROCESSING_VERSION, prepare

SIGNALS = {
    "C3-M2": "uV",
    "C4-M1": "uV",
    "E1-M2": "uV",
    "E2-M1": "uV",
    "Chin1-Chin2": "uV",
    "ECG": "mV",
    "Airflow": "",
    "SpO2": "%",
}
# Standard deviation and mean absolute step of each channel, of the version that made them.
FIGURES: dict[int, dict[str, tuple[float, float]]] = {
    1: {
        "EEG_C3": (0.742707, 0.776608),
        "EEG_C4": (0.750723, 0.790851),
        "EOG_L": (0.747834, 0.788331),
        "EOG_R": (0.744389, 0.779209),
        "EMG_CHIN": (0.747255, 1.052725),
        "AIRFLOW": (0.97751, 0.037372),
        "ECG": (0.737791, 0.650072),
        "SPO2": (1.834249, 2.067507),
    }
}
# Labels alone are others: epochs that nobody scored, and nights with an event that may be anywhere, are not free of events.
FIGURES[2] = FIGURES[1]
# So do those of what a text that is not understood, an event without a length, or a blank line of a list leaves open.
FIGURES[3] = FIGURES[1]
# Flow, effort and oximetry are made at the rate that holds their band.
FIGURES[4] = FIGURES[1] | {"AIRFLOW": (0.97046, 0.03705), "SPO2": (1.797996, 0.080622)}


def test_the_samples_are_those_of_the_version(tmp_path):
    made = [
        Made(label, noise(200 * 300, seed), 200, unit, {"SpO2": ("60", "100"), "ECG": ("-5", "5")}.get(label, ("-100", "100")))
        for seed, (label, unit) in enumerate(SIGNALS.items())
    ]
    night = prepare(write_edf(tmp_path / "a.edf", made), load_cohort("generic"))
    assert len(night.channels) == len(SIGNALS)
    found = {name: (float(x.std()), float(np.abs(np.diff(x)).mean())) for name, x in night.channels.items()}
    assert PROCESSING_VERSION in FIGURES, "write down the figures of the new version"
    for name, figures in FIGURES[PROCESSING_VERSION].items():
        assert np.allclose(found[name], figures, rtol=1e-4), f"{name}: raise PROCESSING_VERSION (found {found})"
