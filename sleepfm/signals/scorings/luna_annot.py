"""Luna's ``.annot`` files (zzz.bwh.harvard.edu/luna/ref/annotations and vignettes/times).

A row is an interval: class, instance, channel, start, stop and meta, or fewer of these. Times are elapsed seconds,
``0+hh:mm:ss``, clock times with or without a date, or epochs (``e:2``); a stop may be a duration (``+30``) or ``...``, until
the start of the next row. ``.eannot`` files, a stage a line, are read as lists (:mod:`sleepfm.signals.scorings.event_table`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import PurePath

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import Clock, is_clock
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.rows import MAX_ROWS, Row, iter_lines, scoring_of_rows
from sleepfm.signals.scorings.scoring import Group, Scoring
from sleepfm.signals.scorings.stage_texts import NUMBER, number_reader
from sleepfm.signals.scorings.vocabulary import is_beside_the_point, is_respiratory, names_a_stage, stage_of

# Column titles, which also say how many columns a file without titles has.
_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("class", "instance", "channel", "start", "stop", "meta"),
    ("class", "instance", "channel", "start", "stop"),
    ("class", "instance", "start", "stop"),
    ("class", "start", "stop"),
)
_SECONDS = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+")
_ELAPSED = re.compile(r"0\+(\d{1,3}):(\d{2}):(\d{2}(?:\.\d+)?)")
_EPOCH = re.compile(r"e:(\d{1,6})(?::(\d+(?:\.\d+)?))?(?::(\d+(?:\.\d+)?))?")
_NONE = (".", "")


def is_luna_annot(text: str) -> bool:
    """Whether the first row of ``text`` is that of a ``.annot`` file."""
    first = next(_lines(text), (0, list[str]()))[1]
    if tuple(cell.lower() for cell in first) in _LAYOUTS:
        return True
    layout = _layout(first)
    if layout is None:
        return False
    start, stop = first[layout.index("start")], first[layout.index("stop")]
    return _is_time(start) and (_is_time(stop) or stop in (*_NONE, "...") or stop.startswith("+"))


def read_luna_annot(text: str, path: PurePath, start: datetime | None, duration: float | None, words: EventWords) -> Scoring:
    """The scoring of a ``.annot`` file; ``start`` and ``duration`` are those of the recording.

    Raises:
        StageTextError: a text where stages stand that is not understood, or numbers that may mean several stages.
        AnnotationError: clock times without ``start``, a row that cannot be read, too many rows, or no stages.
    """
    table = []
    for item in _lines(text):
        table.append(item)
        if len(table) > MAX_ROWS:
            raise AnnotationError(f"{path}: more than {MAX_ROWS} rows; a scoring of a night has fewer")
    layout = next((layout for layout in _LAYOUTS if tuple(cell.lower() for cell in table[0][1]) == layout), None)
    if layout is not None:
        table = table[1:]
    else:
        layout = _layout(table[0][1])
        assert layout is not None
    for number, row in table:
        if len(row) != len(layout):
            raise AnnotationError(
                f"{path}: row {number} has {len(row)} columns, but the file has {len(layout)} ({', '.join(layout)})"
            )
    times = _Times([row[layout.index(name)] for _, row in table for name in ("start", "stop")], start, duration, path)
    onsets = [times.start(row[layout.index("start")], number) for number, row in table]
    rows = []
    for place, (number, row) in enumerate(table):
        stop = row[layout.index("stop")]
        following = onsets[place + 1] if place + 1 < len(table) else duration
        last = place + 1 == len(table)
        lasts = times.lasts(row[layout.index("start")], stop, onsets[place], following, number, last)
        instance = row[layout.index("instance")] if "instance" in layout else "."
        text, group = _text(row[0], instance, words)
        if lasts is not None and lasts < 0 and words.stands_as_stage(text, group):
            end, begin = onsets[place] + lasts, onsets[place]
            raise AnnotationError(f"{path}: row {number} ends at {end:g} s, before it starts ({begin:g} s)")
        rows.append(Row(onsets[place], lasts, text, group))
    in_time = [row.text for row in sorted(rows, key=lambda row: row.onset)]
    stage = number_reader(in_time, stage_of, {}, path)
    return scoring_of_rows(rows, f"Luna annot {path.name}", str(path), stage=stage, words=words)


class _Times:
    """Starts and stops of one file."""

    def __init__(self, texts: Sequence[str], start: datetime | None, duration: float | None, path: PurePath) -> None:
        self._path = path
        self._clock: Clock | None = None
        clocks = [text for text in texts if is_clock(text)]
        if not clocks:
            return
        if start is None:
            raise AnnotationError(
                f"{path}: has clock times, but the start of its recording is unknown; repair the header of the recording"
            )
        try:
            self._clock = Clock(clocks, start, duration)
        except ValueError as error:
            raise AnnotationError(f"{path}: {error}") from error

    def start(self, text: str, number: int) -> float:
        """Onset in s."""
        if match := _EPOCH.fullmatch(text):
            _, step = _epoch(match)
            return (int(match[1]) - 1) * step
        return self._seconds(text, number)

    def lasts(self, start: str, stop: str, onset: float, following: float | None, number: int, last: bool) -> float | None:
        """Duration in s, None where the file does not give the end, negative where that is before the start."""
        if stop == "...":
            # A last row that begins after the recording's end has none.
            end = None if following is None or (last and following < onset) else following
        elif stop.startswith("+") and _SECONDS.fullmatch(stop[1:]):
            return float(stop[1:])
        elif stop in _NONE:
            match = _EPOCH.fullmatch(start)
            return _epoch(match)[0] if match else 0.0
        elif match := _EPOCH.fullmatch(stop):
            length, step = _epoch(match)
            end = (int(match[1]) - 1) * step + length
        else:
            end = self._seconds(stop, number)
        return None if end is None else end - onset

    def _seconds(self, text: str, number: int) -> float:
        if _SECONDS.fullmatch(text):
            return float(text)
        if match := _ELAPSED.fullmatch(text):
            return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        try:
            if self._clock is not None:
                return self._clock.read(text)
        except (ValueError, OverflowError) as error:
            raise AnnotationError(f"{self._path}: row {number}: {error}") from error
        raise AnnotationError(f"{self._path}: row {number}: {text[:40]!r} is not a time")


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each row, without comments and blank lines; tabs separate where there are any."""
    for number, line in iter_lines(text):
        if line.strip() and not line.startswith("#"):
            cells = line.split("\t") if "\t" in line else line.split()
            yield number, [cell.strip() for cell in cells]


def _layout(row: Sequence[str]) -> tuple[str, ...] | None:
    return next((layout for layout in _LAYOUTS if len(layout) == len(row)), None)


def _epoch(match: re.Match[str]) -> tuple[float, float]:
    length = float(match[2]) if match[2] else float(EPOCH_SECONDS)
    return length, float(match[3]) if match[3] else length


def _is_time(text: str) -> bool:
    return is_clock(text) or any(form.fullmatch(text) for form in (_SECONDS, _ELAPSED, _EPOCH))


def _text(name: str, instance: str, words: EventWords) -> tuple[str, Group]:
    """The class, or the instance where the class is only a collection (``edf_annot``, ``SleepStage``), and what that holds."""
    if instance in _NONE:
        return name, ""
    if words.is_own(f"{name} {instance}"):
        return f"{name} {instance}", ""
    if words.is_own(name) or words.is_own(instance):
        return (name if words.is_own(name) else instance), ""
    if words.event_of(name) == "apnea" and words.event_of(f"{name} {instance}"):
        return f"{name} {instance}", ""
    if stage_of(name) is not None or words.event_of(name) is not None or NUMBER.fullmatch(name):
        return name, ""
    if names_a_stage(name):
        return instance, "stage"
    respiratory = is_respiratory(name) and not is_beside_the_point(name)
    return (
        f"{name} {instance}" if respiratory and words.event_of(instance) is None else instance
    ), "respiratory" if respiratory else ""
