"""One night's stages and events as files of every format, equal in content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS, Stage
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.vocabulary import NOT_ASSESSED
from sleepfm.signals.scorings.writers.edf_plus import edf_annotations
from sleepfm.signals.scorings.writers.luna_annot import luna_annot
from sleepfm.signals.scorings.writers.nsrr_xml import ScoredEvent, nsrr_xml
from sleepfm.signals.scorings.writers.profusion_xml import profusion_xml
from sleepfm.signals.scorings.writers.texts import (
    AASM_STAGE,
    EDF_EVENT,
    LUNA_EVENT,
    NSRR_EVENT,
    NSRR_STAGE,
    PROFUSION_EVENT,
    STAGE_CODE,
)

# Families of events that are in doubt together, as readers see it.
FAMILY = {**dict.fromkeys((*APNEA_TYPES, "hypopnea"), "breathing"), "arousal": "arousal", "desaturation": "desaturation"}
FAMILIES = ("breathing", "arousal", "desaturation")
# Of no type that has events in it, so that nobody counts these.
_NSRR_NOT_ASSESSED = "Not assessed|Not assessed"


@dataclass(frozen=True)
class WrittenNight:
    """What is written of a night.

    Attributes:
        stages: [E], :class:`sleepfm.constants.Stage`.
        events: of :data:`sleepfm.constants.EVENT_TYPES`, by onset.
        assessed: family of :data:`FAMILIES` to epochs [E] in which its events were looked for; a family that is not there was
            looked for nowhere.
        start: date and time of the recording's first sample; None where they are not known.
        clock: time of day ``hh:mm:ss`` of the first sample, where ``start`` is not known.
    """

    stages: NDArray[np.int8]
    events: tuple[Event, ...]
    assessed: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    start: datetime | None = None
    clock: str | None = None


def scoring_files(night: WrittenNight) -> dict[str, bytes]:
    """Names and bytes of the files, all of the same scoring."""
    return {
        "scoring.edf": _edf(night),
        "scoring.annot": _luna(night).encode(),
        "scoring-profusion.xml": _profusion(night).encode(),
        "scoring-nsrr.xml": _nsrr(night).encode(),
    }


def stage_runs(codes: Sequence[int]) -> list[tuple[int, int, int]]:
    """First epoch, number of epochs and code of every run of one code."""
    found, place = [], 0
    for code, run in groupby(codes):
        length = sum(1 for _ in run)
        found.append((place, length, code))
        place += length
    return found


def not_assessed(night: WrittenNight) -> list[Event]:
    """What is not known, as events with its text: a span for every run of epochs in which a family of events was not assessed.

    No format has a word for it, and silence is read as "none". This project's readers take what such a text covers for unknown.
    """
    everywhere = np.ones(len(night.stages), bool)
    return [
        Event(float(first * EPOCH_SECONDS), float(length * EPOCH_SECONDS), NOT_ASSESSED[family])
        for family in FAMILIES
        for first, length, missing in stage_runs((~night.assessed[family] if family in night.assessed else everywhere).tolist())
        if missing
    ]


def _codes(night: WrittenNight) -> list[int]:
    return [STAGE_CODE[Stage(stage)] for stage in night.stages.tolist()]


def _rows(night: WrittenNight, events: Mapping[str, str]) -> list[Event]:
    """Events by the format's words, and what was not assessed."""
    return [*(replace(event, type=events[event.type]) for event in night.events), *not_assessed(night)]


def _staged(night: WrittenNight, stages: Mapping[int, str]) -> list[Event]:
    return [
        Event(float(first * EPOCH_SECONDS), float(length * EPOCH_SECONDS), stages[code])
        for first, length, code in stage_runs(_codes(night))
    ]


def _by_onset(rows: Sequence[Event]) -> list[Event]:
    return sorted(rows, key=lambda row: (row.onset, row.type))


def _edf(night: WrittenNight) -> bytes:
    stages = {code: f"Sleep stage {text}" for code, text in AASM_STAGE.items()}
    clock = (night.clock or "00:00:00")[:8].replace(":", ".")
    return edf_annotations(_by_onset([*_staged(night, stages), *_rows(night, EDF_EVENT)]), night.start, clock)


def _luna(night: WrittenNight) -> str:
    return luna_annot(_by_onset([*_staged(night, AASM_STAGE), *_rows(night, LUNA_EVENT)]))


def _profusion(night: WrittenNight) -> str:
    return profusion_xml(_codes(night), _by_onset(_rows(night, PROFUSION_EVENT)))


def _nsrr(night: WrittenNight) -> str:
    rows = []
    for event in night.events:
        kind, concept, location = NSRR_EVENT[event.type]
        rows.append(ScoredEvent(kind, concept, event.onset, event.duration, (("SignalLocation", location),)))
    for event in not_assessed(night):
        rows.append(ScoredEvent(_NSRR_NOT_ASSESSED, f"{event.type}|{event.type}", event.onset, event.duration))
    rows.sort(key=lambda row: (row.onset, row.concept))
    stages = [ScoredEvent("Stages|Stages", row.type, row.onset, row.duration) for row in _staged(night, NSRR_STAGE)]
    clock = (night.start.strftime("%H:%M:%S") if night.start else night.clock or "00:00:00")[:8].replace(":", ".")
    date = night.start.strftime("%d.%m.%y") if night.start else "01.01.85"
    return nsrr_xml([*rows, *stages], float(len(night.stages) * EPOCH_SECONDS), f"{date} {clock}")
