"""The data contract's fixed numbers and names. Nothing here is configurable."""

from __future__ import annotations

from enum import IntEnum

EPOCH_SECONDS = 30
RATE_HZ = 100
EPOCH_SAMPLES = EPOCH_SECONDS * RATE_HZ

MODALITIES = ("EEG", "EOG", "EMG", "ECG", "RESP")

CHANNEL_MODALITY = {
    "EEG_C3": "EEG",
    "EEG_C4": "EEG",
    "EOG_L": "EOG",
    "EOG_R": "EOG",
    "EMG_CHIN": "EMG",
    "ECG": "ECG",
    "AIRFLOW": "RESP",
    "THORAX": "RESP",
    "ABDOMEN": "RESP",
    "SPO2": "RESP",
}
CHANNELS = tuple(CHANNEL_MODALITY)

# Unit of each channel; flow and effort belts carry no calibrated unit.
CHANNEL_UNIT = {
    **dict.fromkeys(("EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "EMG_CHIN"), "uV"),
    "ECG": "mV",
    **dict.fromkeys(("AIRFLOW", "THORAX", "ABDOMEN"), ""),
    "SPO2": "%",
}


class Stage(IntEnum):
    """Sleep stages (AASM 2007; R&K 3 and 4 are both N3). ``UNSCORED`` covers movement too; it is never W."""

    UNSCORED = -1
    W = 0
    N1 = 1
    N2 = 2
    N3 = 3
    REM = 4


STAGE_NAMES = ("W", "N1", "N2", "N3", "REM")

# The last is an apnea whose kind its scorer did not give.
APNEA_TYPES = ("obstructive_apnea", "central_apnea", "mixed_apnea", "apnea")
EVENT_TYPES = (*APNEA_TYPES, "hypopnea", "desaturation", "arousal")

SPLITS = ("pretrain", "label", "val", "test")
