"""Texts that scorers write, by format of the scoring file.

Sources: Luna's table of NSRR's terms (zzz.bwh.harvard.edu/luna/nsrr); the EDF+ specification; documentation of APPLES, NCHSDB,
STAGES at sleepdata.org. Abbreviations and notes are made up as a laboratory may write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Free texts: some hold the words of events and stages without being any.
NOTES = (
    "technician in the room",
    "Patient asks for water",
    "C3 re-attached",
    "impedance check",
    "out of bed, back in bed",
    "talks & laughs in sleep",
    "loud snoring < 5 min",
    "bélt slipped, tightened",
    "no apneas on the left side so far",
    "looks awake?",
    "partner says REM now",
    "Calibration: eyes open, eyes closed",
)
_BRITISH = {
    "obstructive_apnea": "Obstructive apnoea",
    "central_apnea": "Central apnoea",
    "mixed_apnea": "Mixed apnoea",
    "hypopnea": "Hypopnoea",
}
_SHORT = {"obstructive_apnea": "OA", "central_apnea": "CA", "mixed_apnea": "MA", "hypopnea": "HYP"}
_NEW_STAGES = {"0": "WK", "1": "S1", "2": "S2", "3": "SW", "4": "SW", "5": "SR"}


@dataclass(frozen=True)
class FormatTexts:
    """What can be written in one format.

    Attributes:
        holds_events, holds_notes: whether it has events besides stages, and free texts.
        may_start_late, may_end_early: whether epochs at the beginning or the end can be left out.
        leg_movement: its text for one, if it has one.
        vocabularies: words in place of the format's own, by kind of event or code of a stage (3 and 4: deep sleep, 5: REM).
    """

    holds_events: bool = True
    holds_notes: bool = True
    may_start_late: bool = True
    may_end_early: bool = True
    leg_movement: str = ""
    vocabularies: tuple[Mapping[str, str], ...] = ()


def _twice(words: Mapping[str, str]) -> dict[str, str]:
    """As NSRR's XML names a concept: for readers, and as the recorder's program calls it."""
    return {kind: f"{text}|{text}" for kind, text in words.items()}


FORMATS = {
    # Every epoch has a stage there, if only "Unscored".
    "nsrr-xml": FormatTexts(
        may_start_late=False,
        may_end_early=False,
        leg_movement="Limb movement - left|Limb Movement (Left)",
        vocabularies=(
            {"hypopnea": "Unsure|Unsure"},
            {"arousal": "ASDA arousal|Arousal (ASDA)"},
            _twice(_BRITISH),
            _twice(_SHORT),
        ),
    ),
    "edf-hypnogram": FormatTexts(
        holds_events=False,
        vocabularies=(
            {"1": "Sleep stage N1", "2": "Sleep stage N2", "3": "Sleep stage N3", "4": "Sleep stage N3"},
            {code: f"Sleep stage {text}" for code, text in _NEW_STAGES.items()},
        ),
    ),
    "luna-annot": FormatTexts(leg_movement="PLM", vocabularies=(_BRITISH, _SHORT, _NEW_STAGES)),
    "nchsdb-tsv": FormatTexts(
        leg_movement="Limb Movement",
        vocabularies=(_BRITISH, _SHORT, {code: f"Sleep stage {text}" for code, text in _NEW_STAGES.items()}),
    ),
    "stages-csv": FormatTexts(leg_movement="LegMovement", vocabularies=(_BRITISH, _SHORT, _NEW_STAGES)),
    # A number for every epoch from the first.
    "wsc-stages": FormatTexts(holds_events=False, holds_notes=False, may_start_late=False),
}
