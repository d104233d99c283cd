"""How each format calls stages and events.

Sources: EDF+ specification (standard texts); NSRR's XML; Luna's canonical classes (zzz.bwh.harvard.edu/luna/nsrr);
Compumedics Profusion's names of events.
"""

from __future__ import annotations

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
