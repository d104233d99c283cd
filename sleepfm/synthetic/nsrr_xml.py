"""A night's scoring as NSRR's ``annotations-events-nsrr`` XML."""

from __future__ import annotations

from collections.abc import Mapping

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.scorings.writers.night import stage_runs
from sleepfm.signals.scorings.writers.nsrr_xml import ScoredEvent
from sleepfm.signals.scorings.writers.nsrr_xml import nsrr_xml as written
from sleepfm.signals.scorings.writers.texts import NSRR_EVENT, NSRR_STAGE
from sleepfm.synthetic.drawn_events import Event
from sleepfm.synthetic.night import NO_ROW, Night


def nsrr_xml(night: Night) -> str:
    """The file's text: events and notes in order of onset, then runs of stages. Times are to a tenth of a second."""
    rows = [(event.onset, event.kind, _scored(event, night.words)) for event in night.events]
    rows += [
        (note.onset, note.text, ScoredEvent(note.group, note.text, round(note.onset, 1), round(note.duration, 1)))
        for note in night.notes
    ]
    events = [row for _, _, row in sorted(rows, key=lambda item: item[:2])]
    for first, length, code in stage_runs(night.codes.tolist()):
        if code != NO_ROW:
            text = night.words.get(str(code), NSRR_STAGE[code])
            events.append(ScoredEvent("Stages|Stages", text, float(first * EPOCH_SECONDS), float(length * EPOCH_SECONDS)))
    return written(events, float(len(night.codes) * EPOCH_SECONDS), f"01.01.85 {night.start}")


def _scored(event: Event, words: Mapping[str, str]) -> ScoredEvent:
    kind, concept, location = NSRR_EVENT[event.kind]
    fields = [("SignalLocation", location)]
    if event.kind == "desaturation":
        fields += [("SpO2Nadir", f"{event.nadir:.1f}"), ("SpO2Baseline", f"{event.baseline:.1f}")]
    return ScoredEvent(kind, words.get(event.kind, concept), round(event.onset, 1), round(event.duration, 1), tuple(fields))
