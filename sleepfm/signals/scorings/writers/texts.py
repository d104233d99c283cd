"""How each format calls stages and events, and what is said of time in which a family of events was not assessed.

Sources: EDF+ specification (standard texts); NSRR's XML; Luna's canonical classes (zzz.bwh.harvard.edu/luna/nsrr);
Compumedics Profusion's names of events.
"""

from __future__ import annotations

from collections.abc import Iterable

from sleepfm.constants import Stage

# By code of Rechtschaffen and Kales, which XML keeps: 0 W, 1-4, 5 REM, 6 movement, 9 unscored.
NSRR_STAGE = {
    0: "Wake|0",
    1: "Stage 1 sleep|1",
    2: "Stage 2 sleep|2",
    3: "Stage 3 sleep|3",
    4: "Stage 4 sleep|4",
    5: "REM sleep|5",
    6: "Movement|6",
    9: "Unscored|9",
}
STAGE_CODE = {Stage.W: 0, Stage.N1: 1, Stage.N2: 2, Stage.N3: 3, Stage.REM: 5, Stage.UNSCORED: 9}
EDF_STAGE = {0: "W", 1: "1", 2: "2", 3: "3", 4: "4", 5: "R", 6: "M", 9: "?"}
AASM_STAGE = {0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "N3", 5: "R", 6: "?", 9: "?"}
# Type, concept and signal of each event.
NSRR_EVENT = {
    "obstructive_apnea": ("Respiratory|Respiratory", "Obstructive apnea|Obstructive Apnea", "ABDO RES"),
    "central_apnea": ("Respiratory|Respiratory", "Central apnea|Central Apnea", "ABDO RES"),
    "mixed_apnea": ("Respiratory|Respiratory", "Mixed apnea|Mixed Apnea", "ABDO RES"),
    "hypopnea": ("Respiratory|Respiratory", "Hypopnea|Hypopnea", "ABDO RES"),
    "desaturation": ("Respiratory|Respiratory", "SpO2 desaturation|SpO2 desaturation", "SaO2"),
    "apnea": ("Respiratory|Respiratory", "Apnea|Apnea", "ABDO RES"),
    "arousal": ("Arousals|Arousals", "Arousal|Arousal ()", "EEG"),
}
PROFUSION_EVENT = {
    "obstructive_apnea": "Obstructive Apnea",
    "central_apnea": "Central Apnea",
    "mixed_apnea": "Mixed Apnea",
    "apnea": "Apnea",
    "hypopnea": "Hypopnea",
    "desaturation": "SpO2 desaturation",
    "arousal": "Arousal",
}
EDF_EVENT = PROFUSION_EVENT | {
    "obstructive_apnea": "Obstructive apnea",
    "central_apnea": "Central apnea",
    "mixed_apnea": "Mixed apnea",
    "desaturation": "Oxygen desaturation",
    "arousal": "EEG arousal",
}
LUNA_EVENT = {
    "obstructive_apnea": "apnea_obstructive",
    "central_apnea": "apnea_central",
    "mixed_apnea": "apnea_mixed",
    "apnea": "apnea",
    "hypopnea": "hypopnea",
    "desaturation": "desat",
    "arousal": "arousal",
}


def not_assessed_text(families: Iterable[str]) -> str:
    """What is written over time in which events of ``families`` (breathing, arousal, desaturation) were not assessed.

    No format has a word for it, and silence is read as "none". Profusion's scorers tag what they cannot judge "Unsure", which
    this project's readers take for doubt about breathing; arousals and desaturations that a text names which is no event are in
    doubt as well (:mod:`sleepfm.signals.scorings.doubt`).
    """
    missing = set(families)
    beside = [name for name in ("arousal", "desaturation") if name in missing]
    if "breathing" in missing:
        return "Unsure whether " + " or ".join(["apnea", "hypopnea", *beside])
    return "No " + " or ".join(beside) + " assessed" if beside else ""
