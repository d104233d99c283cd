"""NSRR ``annotations-events-nsrr`` XML (PSGAnnotation), as the National Sleep Research Resource publishes it.

Elements are read, not text matched: indentation, line ends, order of attributes, and one name or two in
``EventConcept`` and ``EventType`` ("Stages" or "Stages|Stages") make no difference.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from sleepfm.constants import Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval
from sleepfm.signals.vocabulary import event_of

# A night's file is below 2 MiB; a larger one is no scoring.
MAX_BYTES = 16 << 20
# Codes after the bar of a stage's concept: 3 and 4 are R&K deep sleep, 6 movement, 9 unscored.
_CODES = {
    "0": Stage.W,
    "1": Stage.N1,
    "2": Stage.N2,
    "3": Stage.N3,
    "4": Stage.N3,
    "5": Stage.REM,
    "6": Stage.UNSCORED,
    "9": Stage.UNSCORED,
}


def parse_xml(data: bytes, name: str) -> Element:
    """The root element. DTDs, and with them entities and external references, are refused.

    Raises:
        AnnotationError: too large, not well-formed, or with a DTD.
    """
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"{name}: {len(data)} bytes; a scoring file has at most {MAX_BYTES}")
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{name}: refused, it declares a document type or entities; export it again as plain XML"
        ) from error
    except (ParseError, LookupError, ValueError) as error:
        raise AnnotationError(f"{name}: not well-formed XML ({error})") from error
    return root


def read_nsrr(root: Element, path: Path) -> Scoring:
    """The scoring under a ``PSGAnnotation`` element.

    Raises:
        AnnotationError: an event without onset or duration, an unknown stage code, or no stages.
    """
    stages: list[StageInterval] = []
    events: list[Event] = []
    ignored: Counter[str] = Counter()
    for number, element in enumerate(root.iter("ScoredEvent"), start=1):
        kind = _text(element, "EventType").split("|")[0].strip().casefold()
        concept = _text(element, "EventConcept")
        head, _, code = concept.partition("|")
        where = f"{path}: event {number} ({concept or 'no concept'!r})"
        if kind == "stages":
            stage = _CODES.get(code.strip())
            if stage is None:
                raise AnnotationError(f"{where}: stage code {code!r} is not of {', '.join(_CODES)}")
            stages.append(StageInterval(*_times(element, where), int(stage)))
        elif event := event_of(head):
            events.append(Event(*_times(element, where), event))
        elif head:
            ignored[head] += 1
    if not stages:
        raise AnnotationError(f"{path}: NSRR XML without a single stage; fetch or export it again")
    return Scoring(
        stages=tuple(sorted(stages, key=lambda item: item.onset)),
        events=tuple(sorted(events, key=lambda item: (item.onset, item.type))),
        source=f"NSRR XML {path.name}",
        has_events=True,
        whole_night=True,
        ignored=dict(ignored.most_common(20)),
    )


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _times(element: Element, where: str) -> tuple[float, float]:
    values = []
    for tag in ("Start", "Duration"):
        text = _text(element, tag)
        try:
            value = float(text)
        except ValueError as error:
            raise AnnotationError(f"{where}: {tag} is {text!r}, not seconds") from error
        if not math.isfinite(value) or value < 0:
            raise AnnotationError(f"{where}: {tag} is {text} s")
        values.append(value)
    return values[0], values[1]
