"""NSRR's ``annotations-events-nsrr`` XML; read back by :mod:`sleepfm.signals.scorings.nsrr_xml`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.scorings.writers.numbers import decimal


@dataclass(frozen=True)
class ScoredEvent:
    """One element: ``kind`` is its EventType, ``concept`` its EventConcept, ``fields`` what else stands in it."""

    kind: str
    concept: str
    onset: float
    duration: float
    fields: tuple[tuple[str, str], ...] = ()


def nsrr_xml(events: Iterable[ScoredEvent], duration: float, clock_time: str) -> str:
    """The file's text.

    Args:
        events: as they shall follow each other; events by onset, then runs of stages, in NSRR's files.
        duration: of the recording in s.
        clock_time: date and time of its start, ``dd.mm.yy hh.mm.ss``.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8" standalone="no"?>', "<PSGAnnotation>"]
    lines += ["<SoftwareVersion>Compumedics</SoftwareVersion>", f"<EpochLength>{EPOCH_SECONDS}</EpochLength>"]
    lines += ["<ScoredEvents>"]
    lines += _lines(ScoredEvent("", "Recording Start Time", 0.0, duration, (("ClockTime", clock_time),)))
    for event in events:
        lines += _lines(event)
    return "\n".join([*lines, "</ScoredEvents>", "</PSGAnnotation>", ""])


def _lines(event: ScoredEvent) -> list[str]:
    times = (("Start", decimal(event.onset)), ("Duration", decimal(event.duration)))
    fields = (("EventConcept", event.concept), *times, *event.fields)
    return [
        "<ScoredEvent>",
        f"<EventType>{escape(event.kind)}</EventType>" if event.kind else "<EventType/>",
        *(f"<{name}>{escape(text)}</{name}>" for name, text in fields),
        "</ScoredEvent>",
    ]
