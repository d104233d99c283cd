"""Noxturnal event exports: UTF-16 text, one row an epoch or event, clock times, French or English."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sleepfm.errors import AnnotationError
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval
from sleepfm.signals.vocabulary import event_of, fold, stage_of

# Folded column titles.
_BEGIN = ("heurededebut", "debut", "starttime", "start")
_NAME = ("evenement", "event", "eventtype", "name")
_DURATION = ("duree", "duration")
_CLOCK = re.compile(r"(\d{1,4})[/.\-](\d{1,2})[/.\-](\d{1,4})[ T]+(\d{1,2}):(\d{2}):(\d{2})(?:[.,](\d{1,6}))?\s*([AaPp][Mm])?")


def is_noxturnal(text: str) -> bool:
    """Whether the first line of ``text`` holds the column titles of an export."""
    return _columns(_first_row(text)) is not None


def read_noxturnal(text: str, path: Path, start: datetime | None) -> Scoring:
    """The scoring of an export, in seconds from ``start``, the recording's first sample.

    Raises:
        AnnotationError: ``start`` is not known, a row without time or duration, an ambiguous date, no stages.
    """
    if start is None:
        raise AnnotationError(
            f"{path}: has clock times, and the start of its recording is not known; repair the recording's header"
        )
    columns = _columns(_first_row(text))
    assert columns is not None
    begin_column, name_column, duration_column = columns
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)))
    except csv.Error as error:
        raise AnnotationError(f"{path}: not a table ({error}); export it again") from error
    rows = [
        (number, row)
        for number, row in enumerate(table, start=1)
        if len(row) > max(columns) and _CLOCK.fullmatch(row[begin_column].strip())
    ]
    clock = _Clock([row[begin_column] for _, row in rows], start, path)
    stages: list[StageInterval] = []
    events: list[Event] = []
    ignored: Counter[str] = Counter()
    for number, row in rows:
        name = row[name_column].strip()
        onset = (clock.read(row[begin_column]) - start).total_seconds()
        duration = _seconds(row[duration_column], f"{path}: row {number} ({name!r})")
        stage = stage_of(name)
        if stage is not None:
            stages.append(StageInterval(onset, duration, int(stage)))
        elif event := event_of(name):
            events.append(Event(onset, duration, event))
        else:
            ignored[name] += 1
    if not stages:
        raise AnnotationError(f"{path}: Noxturnal export without a single stage; export the sleep stages too")
    return Scoring(
        stages=tuple(sorted(stages, key=lambda item: item.onset)),
        events=tuple(sorted(events, key=lambda item: (item.onset, item.type))),
        source=f"Noxturnal export {path.name}",
        has_events=bool(events),
        ignored=dict(ignored.most_common(20)),
    )


class _Clock:
    """Reads clock times, having decided once whether the day or the month comes first."""

    def __init__(self, texts: Sequence[str], start: datetime, path: Path) -> None:
        fields = [match for text in texts if (match := _CLOCK.fullmatch(text.strip()))]
        if not fields:
            raise AnnotationError(f"{path}: Noxturnal export without a row that has a clock time")
        orders = [order for order in ("dmy", "mdy", "ymd") if self._fits(fields, order)]
        if not orders:
            raise AnnotationError(f"{path}: {texts[0]!r} is no date and time that is known")
        # Where both day first and month first give dates, the recording's own date decides.
        near = [o for o in orders if abs((self._date(fields[0], o) - start).total_seconds()) < 86_400]
        self.order = (near or orders)[0]

    def read(self, text: str) -> datetime:
        match = _CLOCK.fullmatch(text.strip())
        assert match is not None
        return self._date(match, self.order)

    def _fits(self, fields: Sequence[re.Match[str]], order: str) -> bool:
        try:
            for match in fields:
                self._date(match, order)
        except ValueError:
            return False
        return True

    @staticmethod
    def _date(match: re.Match[str], order: str) -> datetime:
        numbers = dict(zip(order, (int(match[i]) for i in (1, 2, 3)), strict=True))
        hour = int(match[4])
        if match[8]:
            hour = hour % 12 + (12 if match[8].lower() == "pm" else 0)
        micro = int((match[7] or "0").ljust(6, "0"))
        if numbers["y"] < 1000:
            raise ValueError("a year has four digits")
        return datetime(numbers["y"], numbers["m"], numbers["d"], hour, int(match[5]), int(match[6]), micro)


def _first_row(text: str) -> list[str]:
    line = text.lstrip().split("\n", 1)[0][:4096]
    return next(csv.reader([line.strip()], delimiter=_delimiter(text)), [])


def _delimiter(text: str) -> str:
    line = text.lstrip().split("\n", 1)[0][:4096]
    return max(",;\t", key=line.count)


def _columns(titles: Sequence[str]) -> tuple[int, int, int] | None:
    folded = [fold(title) for title in titles]
    found = [next((folded.index(name) for name in names if name in folded), None) for names in (_BEGIN, _NAME, _DURATION)]
    begin, name, duration = found
    return None if begin is None or name is None or duration is None else (begin, name, duration)


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError as error:
        raise AnnotationError(f"{where}: duration {text!r} is not seconds") from error
    if not math.isfinite(value) or value < 0:
        raise AnnotationError(f"{where}: duration is {text} s")
    return value
