"""NSRR's annotation XML (``*-nsrr.xml``): run-length stages and events, in seconds from the recording's start."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from sleepfm.constants import Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.annotations import Event, Scoring, StageInterval

# Stage codes of NSRR and Profusion; 6 is movement and 9 unscored, neither is Wake.
STAGE_OF_CODE = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: -1, 9: -1}
EVENT_OF_CONCEPT = {
    "obstructive apnea": "obstructive_apnea",
    "central apnea": "central_apnea",
    "mixed apnea": "mixed_apnea",
    "hypopnea": "hypopnea",
    "obstructive hypopnea": "hypopnea",
    "central hypopnea": "hypopnea",
    "spo2 desaturation": "desaturation",
    "arousal": "arousal",
    "asda arousal": "arousal",
    "spontaneous arousal": "arousal",
    "respiratory effort related arousal": "arousal",
}


def read(path: Path) -> Scoring:
    """Read an NSRR XML file.

    Raises:
        AnnotationError: not well-formed, with entities or external references, or with a wrong number or stage code.
    """
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except (ParseError, UnicodeError, ValueError) as error:
        raise AnnotationError(f"{path}: not well-formed XML ({error})") from error
    except DefusedXmlException as error:
        raise AnnotationError(f"{path}: refused, scoring needs no document type or entities ({error})") from error
    if root.tag != "PSGAnnotation":
        raise AnnotationError(f"{path}: expected NSRR's <PSGAnnotation>, found <{root.tag}>")
    stages: list[StageInterval] = []
    events: list[Event] = []
    for element in root.iter("ScoredEvent"):
        kind = _text(element, "EventType").partition("|")[0].casefold()
        concept = _text(element, "EventConcept")
        if kind.startswith("stages"):
            onset, duration = _times(path, element)
            stages.append(StageInterval(onset, duration, _stage(path, concept)))
            continue
        name = EVENT_OF_CONCEPT.get(concept.partition("|")[0].strip().casefold())
        if name is not None:
            onset, duration = _times(path, element)
            events.append(Event(onset, duration, name))
    return Scoring(
        tuple(sorted(stages, key=lambda s: s.onset)),
        tuple(sorted(events, key=lambda e: (e.onset, e.type))),
        str(path),
        covers_recording=True,
    )


def _stage(path: Path, concept: str) -> int:
    code = concept.rpartition("|")[2]
    if not code.strip().isdigit() or int(code) not in STAGE_OF_CODE:
        raise AnnotationError(
            f"{path}: unknown stage {concept!r}; expected a code of {sorted(STAGE_OF_CODE)} after '|'"
        )
    return int(Stage(STAGE_OF_CODE[int(code)]))


def _times(path: Path, element: Element) -> tuple[float, float]:
    values = []
    for tag in ("Start", "Duration"):
        text = _text(element, tag)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            concept = _text(element, "EventConcept")
            raise AnnotationError(f"{path}: {tag} of {concept!r} should be seconds from 0, found {text!r}")
        values.append(value)
    return values[0], values[1]


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()
