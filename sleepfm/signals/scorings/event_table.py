"""Tables of stages and events (CSV, TSV): a row an event with its onset, or a row an epoch; and plain lists of stages.

Columns are told by their titles, English or French, among them those of Noxturnal (UTF-16, clock times with dates), BIDS
(``onset duration trial_type``), NCHSDB (``onset duration description``) and STAGES (``Start Time, Duration (seconds),
Event``). Onsets are seconds or clock times. A list without titles has a stage a line, or its number and the stage.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import PurePath

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import Clock, is_clock
from sleepfm.signals.scorings.rows import MAX_ROWS, Row, iter_lines, scoring_of_rows
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.stage_texts import NUMBER, number_reader, refuse_unknown
from sleepfm.signals.scorings.vocabulary import epoch_stage_of, fold, stage_of

# Folded column titles, without the unit that may follow.
_BEGIN = ("heurededebut", "debut", "onset", "starttime", "start", "begin", "begintime", "startdatetime", "timestamp", "time")
_END = ("heuredefin", "fin", "endtime", "end", "stop", "stoptime", "offset", "enddatetime")
_NAME = ("evenement", "event", "eventtype", "description", "trialtype", "label", "annotation", "name", "eventname", "value")
_STAGE = (
    "sleepstage",
    "stage",
    "stade",
    "stages",
    "sleepstages",
    "stagename",
    "hypnogram",
    "hypno",
    "scoring",
    "userdefinedstage",
)
_DURATION = ("duree", "duration", "length", "dur")
_EPOCH = ("epoch", "epochs", "epochnumber", "epochno", "epochindex", "epoque", "30secepoch", "index", "sleepepoch")
_UNIT = re.compile(r"[\s_(\[]+(s|sec|secs|second|seconds|ms|msec|milliseconds|min|mins|minutes)\s*[)\]]?\s*$", re.IGNORECASE)
_SECONDS = {"ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3, "min": 60.0, "mins": 60.0, "minutes": 60.0}
_LEGEND = re.compile(r"(-?\d+)\s*[:=]\s*([A-Za-z][A-Za-z0-9]*)")
# Titles and legends are no longer; expressions that search them take time with the square of their length.
_LONGEST_TEXT = 200
_MISSING = ("", "n/a", "na", "nan", "-", ".", "none")


@dataclass(frozen=True)
class _Columns:
    """Places of the columns; ``begin_unit`` and ``duration_unit`` in s; ``stages_only`` where ``name`` has a title of stages."""

    name: int
    begin: int | None = None
    end: int | None = None
    duration: int | None = None
    epoch: int | None = None
    begin_unit: float = 1.0
    duration_unit: float = 1.0
    stages_only: bool = False


def is_event_table(text: str) -> bool:
    """Whether ``text`` is a table with known titles or a list of stages."""
    try:
        first = next(_rows(text), (0, list[str]()))[1]
    except csv.Error:
        return False
    return _columns(first) is not None or _untitled(first) is not None


def read_event_table(text: str, path: PurePath, start: datetime | None, duration: float | None) -> Scoring:
    """The scoring of a table or list; ``start`` and ``duration`` are those of the recording.

    Raises:
        StageTextError: a text where stages stand that is not understood, or numbers that may mean several stages.
        AnnotationError: clock times without ``start``, a row that cannot be read, too many rows, or no stages.
    """
    try:
        table = list(islice(_rows(text), MAX_ROWS + 1))
    except csv.Error as error:
        raise AnnotationError(f"{path}: not a table ({error}); export it again") from error
    if len(table) > MAX_ROWS:
        raise AnnotationError(f"{path}: more than {MAX_ROWS} rows; a scoring of a night has fewer")
    columns = _columns(table[0][1])
    if columns is not None:
        table = table[1:]
    else:
        columns = _untitled(table[0][1])
        assert columns is not None
    if columns.begin is None:
        return _epochs(table, columns, text, path)
    return _events(table, columns, path, start, duration)


def _events(
    table: Sequence[tuple[int, list[str]]], columns: _Columns, path: PurePath, start: datetime | None, duration: float | None
) -> Scoring:
    assert columns.begin is not None
    cells = [
        (number, row)
        for number, row in table
        if len(row) > max(columns.begin, columns.name) and not _is_filler(row[columns.begin])
    ]
    texts = [row[columns.begin].strip() for _, row in cells]
    clock = None
    if any(is_clock(text) for text in texts):
        if start is None:
            raise AnnotationError(
                f"{path}: has clock times, and the start of its recording is not known; repair the recording's header"
            )
        try:
            clock = Clock([text for text in texts if is_clock(text)], start, duration)
        except ValueError as error:
            raise AnnotationError(f"{path}: {error}") from error

    def seconds(text: str, unit: float, where: str) -> float:
        try:
            if clock is not None and is_clock(text):
                return clock.read(text)
            return float(text.strip().replace(",", ".")) * unit
        except (ValueError, OverflowError) as error:
            raise AnnotationError(f"{where}: {text[:40]!r} is neither seconds nor a clock time") from error

    rows = []
    for number, row in cells:
        name = row[columns.name].strip()
        where = f"{path}: row {number} ({name[:40]!r})"
        onset = seconds(row[columns.begin], columns.begin_unit, where)
        lasts: float | None = None
        if columns.duration is not None and not _missing(row, columns.duration):
            lasts = seconds(row[columns.duration], columns.duration_unit, where)
        elif columns.end is not None and not _missing(row, columns.end):
            lasts = seconds(row[columns.end], columns.begin_unit, where) - onset
        if lasts is not None and not lasts >= 0:
            raise AnnotationError(f"{where}: duration is {lasts:g} s")
        rows.append(Row(onset, lasts, name, "stage" if columns.stages_only else ""))
    in_time = [row.text for row in sorted(rows, key=lambda row: row.onset)]
    stage = number_reader(in_time, epoch_stage_of if columns.stages_only else stage_of, {}, path)
    return scoring_of_rows(rows, f"event table {path.name}", str(path), stage=stage)


def _epochs(table: Sequence[tuple[int, list[str]]], columns: _Columns, text: str, path: PurePath) -> Scoring:
    """A stage a row, epoch after epoch; where epochs are numbered, from 0 or 1."""
    cells = [(number, row) for number, row in table if len(row) > max(columns.name, columns.epoch or 0)]
    names = [row[columns.name].strip() for _, row in cells]
    stage = number_reader(names, epoch_stage_of, _legend(text), path)
    unknown = [(number, name) for (number, _), name in zip(cells, names, strict=True) if stage(name) is None]
    if unknown:
        number, name = unknown[0]
        refuse_unknown(Counter(name for _, name in unknown), f"{path}: line {number}: {name[:40]!r} is no stage")
    first: int | None = None
    rows = []
    for count, ((number, row), name) in enumerate(zip(cells, names, strict=True)):
        place = count
        if columns.epoch is not None:
            given = row[columns.epoch].strip()
            if not re.fullmatch(r"\d{1,6}(\.0+)?", given):
                raise AnnotationError(f"{path}: line {number}: {given[:40]!r} is no epoch number")
            first = min(int(float(given)), 1) if first is None else first
            place = int(float(given)) - first
        rows.append(Row(place * float(EPOCH_SECONDS), float(EPOCH_SECONDS), name))
    return scoring_of_rows(rows, f"stages by epoch {path.name}", str(path), stage=stage, whole_night=columns.epoch is None)


def _legend(text: str) -> dict[int, Stage]:
    """What the file's comments say that its numbers mean ("# 0: Wake, 1: N1")."""
    return {
        int(number): stage
        for _, line in islice(iter_lines(text), 50)
        if line.startswith("#")
        for number, word in _LEGEND.findall(line[:_LONGEST_TEXT])
        if (stage := stage_of(word)) is not None
    }


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of every row, without blank ones and comments."""
    delimiter = None
    for number, row in _parsed(text):
        if delimiter is None and len(row) == 1 and len(row[0].split()) > 1:
            delimiter = " "
        delimiter = delimiter or ","
        cells = row[0].split() if delimiter == " " and len(row) == 1 else row
        if any(cell.strip() for cell in cells):
            yield number, cells


def _parsed(text: str) -> Iterator[tuple[int, list[str]]]:
    lines = (f"{line}\n" for _, line in iter_lines(text) if not line.startswith("#"))
    head = next((line for _, line in iter_lines(text) if line.strip() and not line.startswith("#")), "")[:4096]
    reader = csv.reader(lines, delimiter=max(",;\t", key=head.count))
    for row in reader:
        yield reader.line_num, row


def _columns(titles: Sequence[str]) -> _Columns | None:
    """Where the known columns are, or None: a name or stage is needed, with onsets or without any times."""
    titles = [title.strip()[:_LONGEST_TEXT] for title in titles]
    units = [_SECONDS.get(match[1].lower(), 1.0) if (match := _UNIT.search(title)) else 1.0 for title in titles]
    folded = [fold(_UNIT.sub("", title)) for title in titles]

    def place(names: Sequence[str]) -> int | None:
        return next((folded.index(name) for name in names if name in folded), None)

    begin, end, duration, epoch = place(_BEGIN), place(_END), place(_DURATION), place(_EPOCH)
    name, stage = place(_NAME), place(_STAGE)
    if begin is not None and (name is not None or stage is not None):
        chosen = name if name is not None else stage
        assert chosen is not None
        unit = units[duration] if duration is not None else 1.0
        if duration is None and end is None and name is None:
            # A clock time beside the stage of every epoch.
            return _Columns(chosen, epoch=epoch) if epoch is not None else _Columns(chosen, begin, stages_only=True)
        return _Columns(chosen, begin, end, duration, None, units[begin], unit, stages_only=name is None)
    if stage is not None:
        return _Columns(stage, epoch=epoch)
    return None


def _untitled(first: Sequence[str]) -> _Columns | None:
    cells = [cell.strip() for cell in first]
    while cells and not cells[-1]:
        cells.pop()
    if len(cells) == 1 and _is_stage(cells[0]):
        return _Columns(0)
    if len(cells) == 2 and re.fullmatch(r"[01]", cells[0]) and _is_stage(cells[1]):
        return _Columns(1, epoch=0)
    return None


def _is_stage(text: str) -> bool:
    return bool(text) and (NUMBER.fullmatch(text) is not None or epoch_stage_of(text) is not None)


def _is_filler(text: str) -> bool:
    """Whether a row without an onset is a row of units or of nothing."""
    text = text.strip()
    return not text or (text.startswith("[") and text.endswith("]"))


def _missing(row: Sequence[str], column: int) -> bool:
    return column >= len(row) or row[column].strip().casefold() in _MISSING
