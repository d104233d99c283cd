"""Texts of stages and events as scoring programs write them, English and French, R&K and AASM.

Compared without case, accents, spaces and punctuation. Sources: EDF+ specification (standard texts); NSRR's terms as
Luna's documentation tabulates them (zzz.bwh.harvard.edu/luna/nsrr, ref/hypnograms); the ontology terms of NSRR's
edf-editor-translator (SDO: and SRO:); documentation of NCHSDB, STAGES, WSC and APPLES at sleepdata.org; Noxturnal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sleepfm.constants import Stage

_STAGES = {
    Stage.W: "w wake awake eveil stagew stagewake sleepstagew sleepstagewake stage0 wakefulness wakestate",
    Stage.N1: "n1 1 s1 stage1 stagen1 stages1 sleepstage1 sleepstagen1 stage1sleep nrem1 stagenrem1 n1sleep "
    "nonrapideyemovementsleepn1",
    Stage.N2: "n2 2 s2 stage2 stagen2 stages2 sleepstage2 sleepstagen2 stage2sleep nrem2 stagenrem2 n2sleep "
    "nonrapideyemovementsleepn2",
    # Stages 3 and 4 of Rechtschaffen and Kales (1968) are one stage N3 in the AASM manual (2007).
    Stage.N3: "n3 3 4 s3 s4 n4 stage3 stage4 stagen3 stagen4 stages3 stages4 sleepstage3 sleepstage4 sleepstagen3 "
    "sleepstagen4 stage3sleep stage4sleep stage34sleep nrem3 nrem4 stagenrem3 n3sleep sws "
    "nonrapideyemovementsleepn3 nonrapideyemovementsleepn4",
    Stage.REM: "r rem stager sleepstager remsleep stagerem sleepstagerem paradoxal sp rapideyemovement rapideyemovementsleep",
    Stage.UNSCORED: "? sleepstage? unscored unknown unknownstage unscorable notscored nonscore stageunscored "
    "sleepstageunscored sleepstageunknown stageunknown nostage stagenostage undefined mt movement movementtime "
    "sleepstagem sleepstagemt stagemt stagemvt stagemovement bodymovement",
}
_EVENTS = {
    "obstructive_apnea": "obstructiveapnea apneaobstructive aobstructive apneeobstructive obsapnea oapnea "
    "obstructiveapneaevent obstructiveapneasleepevent",
    "central_apnea": "centralapnea apneacentral acentral acentrale apneecentrale cenapnea capnea "
    "centralapneaevent centralapneasleepevent",
    "mixed_apnea": "mixedapnea apneamixed amixed amixte apneemixte mapnea mixedapneaevent mixedapneasleepevent",
    "hypopnea": "hypopnea hypopnee obstructivehypopnea hypopneaobstructive centralhypopnea hypopneacentral mixedhypopnea "
    "hypopneamixed hypopneasleepevent hypopneaevent hypopnea30 hypopnea50 hobstructive hcentral hypopneeobstructive "
    "hypopneecentrale",
    "desaturation": "desaturation desat spo2desaturation spo2desat oxygendesaturation oxygendesaturationevent "
    "sao2desaturation o2desaturation o2desat oxyhemoglobindesaturation",
    "arousal": "microeveil rera arousalrera respiratoryeffortrelatedarousal",
}
# Labels of an epoch that are stages only in a list that has one for every epoch: elsewhere "lights" is a moment.
_EPOCH_UNSCORED = ("l", "lights", "lightson", "lightsoff", "m", "u", "missing", "artifact", "artefact", "art", "na", "nan", "")
_STAGE_OF = {text: stage for stage, texts in _STAGES.items() for text in texts.split()}
_EVENT_OF = {text: kind for kind, texts in _EVENTS.items() for text in texts.split()}
# Of arousals every cohort has its own variants (spontaneous, respiratory, limb, PLM, ASDA, Cheshire, standard, EEG).
_NO_AROUSAL = re.compile(r"apn|hypopn|noarousal|withoutarousal|desat|artifact|confusional|disorder")
_PREFIX = re.compile(r"^\s*(sdo|sro)\s*:", re.IGNORECASE)

# Numbers that cannot be mistaken: -1 and -2 are YASA's, 6 and 9 Compumedics', 7 WSC's for what is not scored.
_NUMBERS = {
    0: Stage.W,
    1: Stage.N1,
    2: Stage.N2,
    3: Stage.N3,
    **dict.fromkeys((-2, -1, 6, 7, 9), Stage.UNSCORED),
}


def stage_of(text: str) -> Stage | None:
    """The stage that ``text`` names, or None."""
    return _STAGE_OF.get(fold(text))


def epoch_stage_of(text: str) -> Stage | None:
    """The stage of an epoch whose label is ``text``, or None."""
    return Stage.UNSCORED if fold(text) in _EPOCH_UNSCORED else stage_of(text)


def event_of(text: str) -> str | None:
    """The type of event that ``text`` names, or None."""
    folded = fold(text)
    if kind := _EVENT_OF.get(folded):
        return kind
    return "arousal" if "arousal" in folded and not _NO_AROUSAL.search(folded) else None


def stages_of_numbers(numbers: Sequence[int]) -> dict[int, Stage]:
    """What each number of a night's list of stages means.

    4 is stage 4 in a list by Rechtschaffen and Kales, which is known by a 5 (REM), 6, 7 or 9 (not scored); without any
    of these it is REM (YASA, AASM lists).

    Raises:
        ValueError: a number of neither list, or a night without these whose 4 lies next to 3, as stage 4 would.
    """
    meaning = dict(_NUMBERS)
    present = set(numbers)
    if present & {5, 6, 7, 9}:
        meaning |= {4: Stage.N3, 5: Stage.REM}
    elif 4 in present:
        runs = [value for i, value in enumerate(numbers) if i == 0 or numbers[i - 1] != value]
        beside = [runs[j] for i, value in enumerate(runs) if value == 4 for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        if beside.count(3) * 2 > len(beside):
            raise ValueError(
                "4 may be stage 4 or REM: there is no 5, 6, 7 or 9, and most 4s are beside a 3; write names instead of numbers"
            )
        meaning[4] = Stage.REM
    if unknown := sorted(present - meaning.keys()):
        raise ValueError(f"{unknown[0]} is no stage; known are 0-5, and -2, -1, 6, 7 and 9 for unscored")
    return meaning


def fold(text: str) -> str:
    """``text`` without case, accents, spaces and punctuation (a question mark is a stage in EDF+)."""
    plain = unicodedata.normalize("NFKD", _PREFIX.sub("", text[:200])).casefold()
    return "".join(character for character in plain if character.isalnum() or character == "?")
