"""NSRR ``annotations-events-nsrr`` XML (PSGAnnotation), as the National Sleep Research Resource publishes it.

Elements are read, not text matched: indentation, line ends, order of attributes, and one name or two in
``EventConcept`` and ``EventType`` ("Stages" or "Stages|Stages") make no difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import time_of_day
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.rows import Row, scoring_of_rows
from sleepfm.signals.scorings.scoring import Group, Scoring, StageInterval
from sleepfm.signals.scorings.stage_texts import refuse_unknown
from sleepfm.signals.scorings.vocabulary import fold, is_beside_the_point, names_a_stage, stage_of

# A night's file is below 2 MiB and has some thousand elements; a larger one is no scoring.
MAX_BYTES = 16 << 20
_MAX_TAGS = 400_000
# Codes after the bar of a stage's concept: 3 and 4 are R&K deep sleep, 6 movement, 9 unscored.
STAGE_CODES = {
    "0": Stage.W,
    "1": Stage.N1,
    "2": Stage.N2,
    "3": Stage.N3,
    "4": Stage.N3,
    "5": Stage.REM,
    "6": Stage.UNSCORED,
    "9": Stage.UNSCORED,
}
# The scorer's doubt about an epoch is a stage only where it is filed under stages.
_UNSURE = ("unsure", "artifact", "artefact")
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}


def parse_xml(data: bytes, name: str) -> Element:
    """The root element. DTDs, and with them entities and external references, are refused.

    Raises:
        AnnotationError: too large, not well-formed, or with a DTD.
    """
    if len(data) > MAX_BYTES or data.count(b"<") > _MAX_TAGS:
        raise AnnotationError(f"{name}: {len(data)} bytes, {data.count(b'<')} tags, far more than a scoring file has")
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{name}: refused, it declares a document type or entities; export it again as plain XML"
        ) from error
    except (ParseError, LookupError, ValueError) as error:
        raise AnnotationError(f"{name}: not well-formed XML ({error})") from error
    return root


def read_nsrr(root: Element, path: PurePath, words: EventWords) -> Scoring:
    """The scoring under a ``PSGAnnotation`` element.

    Raises:
        StageTextError: a stage that is none of ours.
        AnnotationError: a stage without onset or duration or with an unknown unit, or no stages.
    """
    rows: list[Row] = []
    staged: list[tuple[Row, Stage]] = []
    unknown: Counter[str] = Counter()
    first: float | None = None
    for number, element in enumerate(root.iter("ScoredEvent"), start=1):
        kind = element_text(element, "EventType").split("|")[0].strip().casefold()
        concept = element_text(element, "EventConcept")
        head, _, code = concept.partition("|")
        where = f"{path}: event {number} ({concept or 'no concept'!r})"
        start = "Start" if element.find("Start") is not None else "Starttime"
        stage = _stage(kind, head, code.strip())
        if stage is None and (kind == "stages" or (not kind and names_a_stage(head))):
            unknown[concept] += 1
            first = event_seconds(element, start) if first is None else first
            continue
        respiratory = kind == "respiratory" and not is_beside_the_point(head)
        if stage is None and not head and not respiratory:
            continue
        text = concept if words.event_of(head) is None and words.event_of(concept) else head
        group: Group = "respiratory" if respiratory else ""
        if stage is None:
            rows.append(Row(event_seconds(element, start), event_seconds(element, "Duration"), text, group))
        else:
            row = Row(element_seconds(element, start, where), element_seconds(element, "Duration", where), text, group)
            staged.append((row, stage))
    refuse_unknown(unknown, str(path), first if first is not None and math.isfinite(first) else None)
    if not staged:
        raise AnnotationError(f"{path}: NSRR XML without any stage; download or export it again")
    staged.sort(key=lambda item: item[0].onset)
    onset_unit, duration_unit, warnings = _units([row for row, _ in staged])
    stages = [StageInterval(row.onset * onset_unit, (row.duration or 0.0) * duration_unit, int(stage)) for row, stage in staged]
    rows = [replace(row, onset=row.onset * onset_unit, duration=(row.duration or 0.0) * duration_unit) for row in rows]
    scoring = scoring_of_rows(
        rows,
        f"NSRR XML {path.name}",
        str(path),
        stages=stages,
        has_events=True,
        whole_night=True,
        warnings=warnings,
        words=words,
    )
    return replace(scoring, clock=_clock(root))


def _clock(root: Element) -> float | None:
    """The time of day of the recording's start, as the element for that says it."""
    for element in root.iter("ScoredEvent"):
        if fold(element_text(element, "EventConcept").split("|")[0]).startswith("recordingstart"):
            return time_of_day(element_text(element, "ClockTime"))
    return None


def _stage(kind: str, head: str, code: str) -> Stage | None:
    """The stage of a scored event, None for other events; files without types have the ontology's terms."""
    named = stage_of(head)
    if kind == "stages":
        if code in STAGE_CODES:
            return STAGE_CODES[code]
        if fold(head) in _UNSURE:
            return Stage.UNSCORED
        return None if code.isdigit() else named
    if kind:
        return None
    return STAGE_CODES.get(code, named) if named is not None else None


def _units(stages: Sequence[Row]) -> tuple[float, float, tuple[str, ...]]:
    """Seconds in the unit of onsets and of durations, and a warning where that is not 1.

    A scoring of a night has stage after stage. Where onsets follow each other by a thousandth, a thirtieth or ... of
    the durations, they are in that unit; where every duration is a multiple of 30,000, both are milliseconds.
    """
    durations = [row.duration or 0.0 for row in stages]
    if durations and all(value and value % (1000 * EPOCH_SECONDS) == 0 for value in durations):
        return 1e-3, 1e-3, ("onsets and durations are milliseconds",)
    steps = [(after.onset - row.onset, row.duration or 0.0) for row, after in pairwise(stages)]
    steps = [(step, duration) for step, duration in steps if duration > 0 and step > 0]
    for unit, name in ((1.0, "seconds"), (1e-3, "milliseconds"), (float(EPOCH_SECONDS), "epochs"), (60.0, "minutes")):
        fitting = sum(abs(step * unit - duration) < 0.5 for step, duration in steps)
        if len(steps) >= 2 and fitting * 2 > len(steps):
            return (unit, 1.0, ()) if unit == 1.0 else (unit, 1.0, (f"onsets are {name}, durations seconds",))
    return 1.0, 1.0, ()


def element_text(element: Element, tag: str) -> str:
    """Text of the child ``tag``, empty where it has none."""
    return (element.findtext(tag) or "").strip()


def element_seconds(element: Element, tag: str, where: str) -> float:
    """Seconds in the child ``tag``, by its attribute ``Units`` if it has one.

    Raises:
        AnnotationError: no number, a negative one, or an unknown unit.
    """
    value = _number(element, tag, where)
    if not math.isfinite(value) or value < 0:
        raise AnnotationError(f"{where}: {tag} is {element_text(element, tag)[:40]} s")
    return value


def event_seconds(element: Element, tag: str) -> float:
    """As :func:`element_seconds` for an event, which a scoring can do without: whatever number is there, nan for none."""
    try:
        return _number(element, tag, "")
    except AnnotationError:
        return math.nan


def _number(element: Element, tag: str, where: str) -> float:
    child = element.find(tag)
    text = "" if child is None else (child.text or "").strip()
    attributes = {} if child is None else child.attrib
    unit = next((value for key, value in attributes.items() if key.casefold() in ("unit", "units")), "")
    factor = _UNITS.get(unit.strip().casefold())
    if factor is None:
        raise AnnotationError(f"{where}: unit of {tag} is {unit[:40]!r}; known are seconds, ms, min and h")
    try:
        return float(text) * factor
    except ValueError as error:
        raise AnnotationError(f"{where}: {tag} is {text[:40]!r}, not seconds") from error
