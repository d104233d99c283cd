"""Noxturnal event exports: UTF-16 text, one row an event, clock times, French or English names."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path

from sleepfm.constants import Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.annotations import Event, Scoring, StageInterval

STAGE_OF_NAME = {
    "éveil": Stage.W,
    "wake": Stage.W,
    "n1": Stage.N1,
    "n2": Stage.N2,
    "n3": Stage.N3,
    "rem": Stage.REM,
}
EVENT_OF_NAME = {
    "a. obstructive": "obstructive_apnea",
    "a. centrale": "central_apnea",
    "a. central": "central_apnea",
    "a. mixte": "mixed_apnea",
    "a. mixed": "mixed_apnea",
    "apnée obstructive": "obstructive_apnea",
    "hypopnée": "hypopnea",
    "hypopnea": "hypopnea",
    "désat": "desaturation",
    "desat": "desaturation",
    "micro-éveil": "arousal",
    "arousal": "arousal",
}
_CLOCKS = ("%d/%m/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S")


def read(path: Path) -> Scoring:
    """Read an export. Rows whose name is neither a stage nor a known event (notifications, positions) are left alone.

    Raises:
        AnnotationError: not UTF-16 text, or a row without a readable time or duration.
    """
    try:
        with path.open(encoding="utf-16", newline="") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeError, csv.Error) as error:
        raise AnnotationError(f"{path}: not a UTF-16 event export ({error})") from error
    timed: list[tuple[datetime, float, str]] = []
    for number, row in enumerate(rows, 1):
        name = row[2].strip().casefold() if len(row) >= 4 else ""
        if name in STAGE_OF_NAME or name in EVENT_OF_NAME:
            timed.append((_clock(path, number, row[0]), _seconds(path, number, row[3]), name))
    if not timed:
        return Scoring((), (), str(path))
    start = min(when for when, _, _ in timed)
    stages, events = [], []
    for when, duration, name in timed:
        onset = (when - start).total_seconds()
        if name in STAGE_OF_NAME:
            stages.append(StageInterval(onset, duration, int(STAGE_OF_NAME[name])))
        else:
            events.append(Event(onset, duration, EVENT_OF_NAME[name]))
    respiratory = any(event.type != "arousal" for event in events)
    return Scoring(tuple(stages), tuple(events), str(path), has_events=respiratory, start=start)


def _clock(path: Path, row: int, text: str) -> datetime:
    for form in _CLOCKS:
        try:
            return datetime.strptime(text.strip(), form)
        except ValueError:
            continue
    raise AnnotationError(f"{path}: row {row}: {text!r} is no date and time")


def _seconds(path: Path, row: int, text: str) -> float:
    try:
        seconds = float(text.strip().replace(",", "."))
    except ValueError as error:
        raise AnnotationError(f"{path}: row {row}: {text!r} is no duration in seconds") from error
    if not 0 <= seconds < 7 * 86_400:
        raise AnnotationError(f"{path}: row {row}: a duration of {text} s makes no sense")
    return seconds
