"""Texts of stages and events as scoring programs write them, English and French, R&K and AASM."""

from __future__ import annotations

import unicodedata

from sleepfm.constants import Stage

_STAGES = {
    Stage.W: "w wake awake eveil stagew sleepstagew stage0 wakefulness",
    Stage.N1: "n1 1 s1 stage1 stagen1 sleepstage1 sleepstagen1 stage1sleep nrem1",
    Stage.N2: "n2 2 s2 stage2 stagen2 sleepstage2 sleepstagen2 stage2sleep nrem2",
    # Stages 3 and 4 of Rechtschaffen and Kales (1968) are one stage N3 in the AASM manual (2007).
    Stage.N3: "n3 3 4 s3 s4 n4 stage3 stage4 stagen3 sleepstage3 sleepstage4 sleepstagen3 stage3sleep stage4sleep nrem3 nrem4",
    Stage.REM: "r rem stager sleepstager remsleep stagerem sleepstagerem paradoxal",
    Stage.UNSCORED: "? sleepstage? unscored unknown nonscore mt movement movementtime sleepstagem sleepstagemt bodymovement",
}
_EVENTS = {
    "obstructive_apnea": "obstructiveapnea apneaobstructive aobstructive apneeobstructive",
    "central_apnea": "centralapnea apneacentral acentral acentrale apneecentrale",
    "mixed_apnea": "mixedapnea apneamixed amixed amixte apneemixte",
    "hypopnea": "hypopnea hypopnee obstructivehypopnea hypopneaobstructive centralhypopnea hypopneacentral",
    "desaturation": "desaturation desat spo2desaturation oxygendesaturation sao2desaturation",
    "arousal": "arousal arousals eegarousal microeveil microarousal asdaarousal spontaneousarousal "
    "arousalspontaneous externalarousal arousalresultingfromrespiratoryeffort arousalrespiratory "
    "respiratoryarousal rera arousalrera",
}
_STAGE_OF = {text: stage for stage, texts in _STAGES.items() for text in texts.split()}
_EVENT_OF = {text: kind for kind, texts in _EVENTS.items() for text in texts.split()}


def stage_of(text: str) -> Stage | None:
    """The stage that ``text`` names, or None."""
    return _STAGE_OF.get(fold(text))


def event_of(text: str) -> str | None:
    """The type of event that ``text`` names, or None."""
    return _EVENT_OF.get(fold(text))


def fold(text: str) -> str:
    """``text`` without case, accents, spaces and punctuation (a question mark is a stage in EDF+)."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in plain if character.isalnum() or character == "?")
