"""Compumedics Profusion XML (CMPStudyConfig): a code an epoch, and events with names.

Source: NSRR's edf-editor-translator, wiki page Compumedics-Annotation-Format.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from xml.etree.ElementTree import Element

from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.nsrr_xml import STAGE_CODES, element_seconds, element_text, event_seconds
from sleepfm.signals.scorings.rows import Row, scoring_of_rows
from sleepfm.signals.scorings.scoring import Scoring, StageInterval
from sleepfm.signals.scorings.stage_texts import refuse_unknown

ROOT = "CMPStudyConfig"


def read_profusion(root: Element, path: PurePath, words: EventWords) -> Scoring:
    """The scoring under a ``CMPStudyConfig`` element.

    Raises:
        StageTextError: an epoch with an unknown code.
        AnnotationError: no stages, or an epoch length that is none.
    """
    length = element_seconds(root, "EpochLength", f"{path}: EpochLength")
    if length <= 0:
        raise AnnotationError(f"{path}: EpochLength is {length:g} s")
    stages = []
    unknown: list[tuple[int, str]] = []
    for number, element in enumerate(root.iter("SleepStage")):
        code = (element.text or "").strip()
        stage = STAGE_CODES.get(code)
        if stage is None:
            unknown.append((number + 1, code))
            continue
        stages.append(StageInterval(number * length, length, int(stage)))
    if unknown:
        first, code = unknown[0]
        where = f"{path}: stage of epoch {first} is {code!r}, not of {', '.join(STAGE_CODES)}"
        refuse_unknown(Counter(code for _, code in unknown), where)
    if not stages:
        raise AnnotationError(f"{path}: Profusion XML without any stage; download or export it again")
    rows = []
    for element in root.iter("ScoredEvent"):
        rows.append(Row(event_seconds(element, "Start"), event_seconds(element, "Duration"), element_text(element, "Name")))
    return scoring_of_rows(
        rows, f"Profusion XML {path.name}", str(path), stages=stages, has_events=True, whole_night=True, words=words
    )
