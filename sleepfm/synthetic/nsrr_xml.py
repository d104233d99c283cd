"""Write scoring as NSRR's ``annotations-events-nsrr`` XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.synthetic.drawn_events import Event
from sleepfm.synthetic.night import NO_ROW, Night

# SHHS was scored by Rechtschaffen and Kales: deep sleep is stage 3 or 4, a moving epoch may be "Movement".
STAGE_CONCEPT = {
    0: "Wake|0",
    1: "Stage 1 sleep|1",
    2: "Stage 2 sleep|2",
    3: "Stage 3 sleep|3",
    4: "Stage 4 sleep|4",
    5: "REM sleep|5",
    6: "Movement|6",
    9: "Unscored|9",
}
EVENT_CONCEPT = {
    "obstructive_apnea": ("Respiratory|Respiratory", "Obstructive apnea|Obstructive Apnea", "ABDO RES"),
    "central_apnea": ("Respiratory|Respiratory", "Central apnea|Central Apnea", "ABDO RES"),
    "mixed_apnea": ("Respiratory|Respiratory", "Mixed apnea|Mixed Apnea", "ABDO RES"),
    "hypopnea": ("Respiratory|Respiratory", "Hypopnea|Hypopnea", "ABDO RES"),
    "desaturation": ("Respiratory|Respiratory", "SpO2 desaturation|SpO2 desaturation", "SaO2"),
    "apnea": ("Respiratory|Respiratory", "Apnea|Apnea", "ABDO RES"),
    "arousal": ("Arousals|Arousals", "Arousal|Arousal ()", "EEG"),
}


def nsrr_xml(night: Night) -> str:
    """The file's text: events and notes in order of onset, then runs of stages."""
    duration = float(len(night.codes) * EPOCH_SECONDS)
    lines = ['<?xml version="1.0" encoding="UTF-8" standalone="no"?>', "<PSGAnnotation>"]
    lines += ["<SoftwareVersion>Compumedics</SoftwareVersion>", f"<EpochLength>{EPOCH_SECONDS}</EpochLength>"]
    lines += ["<ScoredEvents>"]
    lines += _event("", "Recording Start Time", 0.0, duration, [("ClockTime", f"01.01.85 {night.start}")])
    rows = [(event.onset, event.kind, _scored(event, night.words)) for event in night.events]
    rows += [(note.onset, note.text, _event(note.group, note.text, note.onset, note.duration, [])) for note in night.notes]
    for _, _, row in sorted(rows, key=lambda item: item[:2]):
        lines += row
    epoch = 0
    for code, run in groupby(night.codes.tolist()):
        length = sum(1 for _ in run)
        times = (float(epoch * EPOCH_SECONDS), float(length * EPOCH_SECONDS))
        if code != NO_ROW:
            lines += _event("Stages|Stages", night.words.get(str(code), STAGE_CONCEPT[code]), *times, [])
        epoch += length
    return "\n".join([*lines, "</ScoredEvents>", "</PSGAnnotation>", ""])


def _scored(event: Event, words: Mapping[str, str]) -> list[str]:
    kind, concept, location = EVENT_CONCEPT[event.kind]
    more = [("SignalLocation", location)]
    if event.kind == "desaturation":
        more += [("SpO2Nadir", f"{event.nadir:.1f}"), ("SpO2Baseline", f"{event.baseline:.1f}")]
    return _event(kind, words.get(event.kind, concept), event.onset, event.duration, more)


def _event(kind: str, concept: str, onset: float, duration: float, more: Sequence[tuple[str, str]]) -> list[str]:
    fields = [("EventConcept", concept), ("Start", f"{onset:.1f}"), ("Duration", f"{duration:.1f}"), *more]
    return [
        "<ScoredEvent>",
        f"<EventType>{kind}</EventType>" if kind else "<EventType/>",
        *(f"<{name}>{escape(text)}</{name}>" for name, text in fields),
        "</ScoredEvent>",
    ]
