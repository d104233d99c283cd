"""Tables of stages and events (CSV, TSV): a row an event with its onset, or a row an epoch; and plain lists of stages.

Columns are told by their titles (:mod:`sleepfm.signals.scorings.table_columns`), among them those of Noxturnal (UTF-16, clock
times with dates), BIDS (``onset duration trial_type``), NCHSDB (``onset duration description``), STAGES (``Start Time, Duration
(seconds), Event``) and RemLogic (``Sleep Stage, Time [hh:mm:ss], Event, Duration[s]`` below lines of its own, events among
the epochs). Onsets are seconds, times of day or elapsed times. A list without titles has a stage a line, or its number and
the stage.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice, pairwise
from pathlib import PurePath

import numpy as np

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import is_clock
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.rows import MAX_ROWS, Row, iter_lines, scoring_of_rows
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.stage_texts import NUMBER, number_reader, refuse_unknown
from sleepfm.signals.scorings.table_columns import Columns, delimiter_of, find_titles
from sleepfm.signals.scorings.table_times import TableTimes
from sleepfm.signals.scorings.vocabulary import epoch_stage_of, stage_of

_LEGEND = re.compile(r"(-?\d+)\s*[:=]\s*([A-Za-z][A-Za-z0-9]*)")
# Legends are no longer; expressions that search them take time with the square of their length.
_LONGEST_TEXT = 200
_MISSING = ("", "n/a", "na", "nan", "-", ".", "none")
# The AASM scores 30 s, some laboratories 20 s.
_SHORTEST_EPOCH = 10.0
_CLOSE = 0.5


def is_event_table(text: str) -> bool:
    """Whether ``text`` is a table with known titles or a list of stages."""
    try:
        return find_titles(text) is not None or _untitled(next(_rows(text), (0, list[str]()))[1]) is not None
    except csv.Error:
        return False


def read_event_table(text: str, path: PurePath, start: datetime | None, duration: float | None, words: EventWords) -> Scoring:
    """The scoring of a table or list; ``start`` and ``duration`` are those of the recording.

    Raises:
        StageTextError: a text where stages stand that is not understood, or numbers that may mean several stages.
        AnnotationError: a table in which nothing says when its rows are, times of day without ``start``, times that may be
            times of day or elapsed, a row that cannot be read or that may be an epoch or an event, too many rows, or no stages.
    """
    titles = find_titles(text)
    try:
        table = list(islice(_rows(text, titles.line, titles.delimiter) if titles else _rows(text), MAX_ROWS + 1))
    except csv.Error as error:
        raise AnnotationError(f"{path}: not a table ({error}); export it again") from error
    if len(table) > MAX_ROWS:
        raise AnnotationError(f"{path}: more than {MAX_ROWS} rows; a scoring of a night has fewer")
    columns = titles.columns if titles else _untitled(table[0][1])
    assert columns is not None
    if not columns.placed:
        raise AnnotationError(
            f"{path}: of the columns {', '.join(title for title in columns.titles if title)} none gives the time of a row; "
            "call one "
            "`onset` (in seconds), `clock time`, `elapsed time` or `epoch` (its number), or keep only the stages"
        )
    table = [(number, row) for number, row in table if len(row) >= columns.least]
    if columns.begin is None:
        return _epochs(table, columns, text, path, words)
    return _timed(table, columns, path, start, duration, words)


def _timed(
    table: Sequence[tuple[int, list[str]]],
    columns: Columns,
    path: PurePath,
    start: datetime | None,
    duration: float | None,
    words: EventWords,
) -> Scoring:
    """Rows with onsets: stages and events in one column, stages alone, or stages in one and events in another."""
    assert columns.begin is not None
    cells = [(number, row) for number, row in table if not _is_filler(row, columns, words)]
    times = TableTimes([row[columns.begin].strip() for _, row in cells], columns, path, start, duration)
    rows: list[Row] = []
    doubtful: list[tuple[int, Row]] = []
    for number, row in cells:
        text, is_stage = _text_of(row, columns, f"{path}: row {number}")
        where = f"{path}: row {number} ({text[:40]!r})"
        staged = is_stage or words.stands_as_stage(text)
        onset, lasts = _times_of(row, columns, times, where, staged)
        if lasts is not None and not lasts >= 0 and staged:
            raise AnnotationError(f"{where}: duration is {lasts:g} s")
        rows.append(Row(onset, lasts, text, "stage" if is_stage else ""))
        if (
            not is_stage
            and columns.stage is not None
            and epoch_stage_of(row[columns.stage].strip()) not in (None, Stage.UNSCORED)
        ):
            doubtful.append((number, rows[-1]))
    stages = [row for row in rows if row.group == "stage"]
    if columns.duration is None and columns.end is None:
        _refuse_short_steps(stages, path)
    _refuse_events_in_place_of_epochs(doubtful, stages, path)
    in_time = [row.text for row in sorted((row for row in rows if not np.isnan(row.onset)), key=lambda row: row.onset)]
    stage = number_reader(in_time, epoch_stage_of if columns.name is None else stage_of, {}, path)
    return scoring_of_rows(
        rows,
        f"event table {path.name}",
        str(path),
        stage=stage,
        warnings=times.warnings,
        words=words,
        seconds_assumed=not any(is_clock(row[columns.begin].strip()) for _, row in cells),
    )


def _times_of(row: Sequence[str], columns: Columns, times: TableTimes, where: str, staged: bool) -> tuple[float, float | None]:
    """Onset and duration, None without one; of an event nan for what cannot be read. Raises :class:`AnnotationError`."""
    assert columns.begin is not None
    onset: float = np.nan
    try:
        onset = times.onset(row[columns.begin], where)
        if columns.duration is not None and not _missing(row, columns.duration):
            return onset, times.length(row[columns.duration], where)
        if columns.end is not None and not _missing(row, columns.end):
            return onset, times.onset(row[columns.end], where) - onset
    except AnnotationError:
        # Without a text nobody knows what the row is.
        if staged or not row[columns.name if columns.name is not None else 0].strip():
            raise
        return onset, np.nan
    return onset, None


def _text_of(row: Sequence[str], columns: Columns, where: str) -> tuple[str, bool]:
    """What a row says, and whether it stands as a stage: of a stage and an event beside it, the event where there is one.

    Raises:
        AnnotationError: the event names another stage than the column of stages.
    """
    event = row[columns.name].strip() if columns.name is not None else ""
    if columns.stage is None:
        return event, False
    staged = row[columns.stage].strip()
    if columns.name is None or _missing(row, columns.name):
        return staged, True
    named, beside = stage_of(event), stage_of(staged)
    if named is not None and beside is not None and named != beside:
        raise AnnotationError(f"{where}: its stage is {staged[:40]!r} and its event {event[:40]!r}; one of them is wrong")
    return event, named is not None


def _refuse_short_steps(stages: Sequence[Row], path: PurePath) -> None:
    """Raises :class:`AnnotationError` for stages without durations whose onsets are closer than epochs can be."""
    onsets = np.unique([row.onset for row in stages])
    step = float(np.median(np.diff(onsets))) if len(onsets) > 2 else np.inf
    if step < _SHORTEST_EPOCH:
        raise AnnotationError(
            f"{path}: the onsets of its stages are {step:g} s apart; if they are numbers of epochs, call the column `epoch`, if "
            "they have another unit, say so (`onset (min)`)"
        )


def _refuse_events_in_place_of_epochs(doubtful: Sequence[tuple[int, Row]], stages: Sequence[Row], path: PurePath) -> None:
    """Raises :class:`AnnotationError` where a row with a stage and an event stands where an epoch of its own is missing.

    An event among the epochs repeats the stage of its epoch, which has a row of its own. Where that is missing, the row may be
    both.
    """
    ordered = sorted(stages, key=lambda row: row.onset)
    begins = np.array([row.onset for row in ordered])
    ends = np.array([row.onset + (row.duration or EPOCH_SECONDS) for row in ordered])
    for number, row in doubtful if ordered else ():
        place = int(np.searchsorted(begins, row.onset + _CLOSE, side="right")) - 1
        if place >= 0 and row.onset < ends[place] - _CLOSE:
            continue
        into_epoch = (row.onset - begins[0]) % EPOCH_SECONDS
        if min(into_epoch, EPOCH_SECONDS - into_epoch) <= _CLOSE:
            raise AnnotationError(
                f"{path}: row {number}: has a stage and the event {row.text[:40]!r} but no row has only the stage, so it is "
                "unclear whether rows are epochs or events; export stages and events separately"
            )


def _epochs(table: Sequence[tuple[int, list[str]]], columns: Columns, text: str, path: PurePath, words: EventWords) -> Scoring:
    """A stage a row, epoch after epoch; where epochs are numbered, from 0 or 1."""
    place_of_stage = columns.stage if columns.stage is not None else 0
    cells = list(table)
    names = [row[place_of_stage].strip() for _, row in cells]
    stage = number_reader(names, epoch_stage_of, _legend(text), path)
    unknown = [(number, name) for (number, _), name in zip(cells, names, strict=True) if stage(name) is None]
    if unknown:
        number, name = unknown[0]
        refuse_unknown(Counter(name for _, name in unknown), f"{path}: line {number}: {name[:40]!r} is no stage")
    places = _places(cells, text, path) if columns.epoch is None else []
    first: int | None = None
    met: set[int] = set()
    rows = []
    for count, ((number, row), name) in enumerate(zip(cells, names, strict=True)):
        if columns.epoch is None:
            place = places[count]
        else:
            given = row[columns.epoch].strip()
            if not re.fullmatch(r"\d{1,6}(\.0+)?", given):
                raise AnnotationError(f"{path}: line {number}: {given[:40]!r} is not an epoch number")
            first = min(int(float(given)), 1) if first is None else first
            place = int(float(given)) - first
            if place in met:
                raise AnnotationError(
                    f"{path}: line {number}: epoch {given} occurs twice; if one of the rows is an event, export stages and "
                    "events separately"
                )
            met.add(place)
        rows.append(Row(place * float(EPOCH_SECONDS), float(EPOCH_SECONDS), name))
    left_out = places[-1] + 1 - len(places) if places else 0
    return scoring_of_rows(
        rows,
        f"stages by epoch {path.name}",
        str(path),
        stage=stage,
        whole_night=columns.epoch is None,
        warnings=(f"{left_out} blank lines among the stages are epochs that are not scored",) if left_out else (),
        words=words,
        seconds_assumed=True,
    )


def _places(table: Sequence[tuple[int, list[str]]], text: str, path: PurePath) -> list[int]:
    """The epoch of each row of a list: a blank line among the stages is one without a stage, unless there are as many everywhere.

    Raises:
        AnnotationError: a comment among the stages, in the place of an epoch or not.
    """
    numbers = [number for number, _ in table]
    for number, line in islice(iter_lines(text), numbers[0], numbers[-1]):
        if line.startswith("#"):
            raise AnnotationError(
                f"{path}: line {number}: {line[:40]!r} stands among the stages, and it is unclear whether it stands for an "
                "epoch. Write ? for an epoch without a stage, and put comments before the stages"
            )
    spacing = {after - before for before, after in pairwise(numbers)}
    step = spacing.pop() if len(spacing) == 1 else 1
    return [(number - numbers[0]) // step for number in numbers]


def _legend(text: str) -> dict[int, Stage]:
    """What the file's comments say that its numbers mean ("# 0: Wake, 1: N1")."""
    return {
        int(number): stage
        for _, line in islice(iter_lines(text), 50)
        if line.startswith("#")
        for number, word in _LEGEND.findall(line[:_LONGEST_TEXT])
        if (stage := stage_of(word)) is not None
    }


def _rows(text: str, after: int = 0, delimiter: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of every row below the line ``after``, without blank ones and comments."""
    lines = ((number, line) for number, line in iter_lines(text) if number > after and not line.startswith("#"))
    numbers: list[int] = [0]

    def counted() -> Iterator[str]:
        for number, line in lines:
            numbers[0] = number
            yield f"{line}\n"

    if delimiter is None:
        head = next((line for _, line in iter_lines(text) if line.strip() and not line.startswith("#")), "")
        delimiter = delimiter_of(head)
    reader = (line.split() for line in counted()) if delimiter == " " else csv.reader(counted(), delimiter=delimiter)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield numbers[0], cells


def _untitled(first: Sequence[str]) -> Columns | None:
    cells = [cell.strip() for cell in first]
    while cells and not cells[-1]:
        cells.pop()
    if len(cells) == 1 and _is_stage(cells[0]):
        return Columns(stage=0)
    if len(cells) == 2 and re.fullmatch(r"[01]", cells[0]) and _is_stage(cells[1]):
        return Columns(stage=1, epoch=0)
    return None


def _is_stage(text: str) -> bool:
    return bool(text) and (NUMBER.fullmatch(text) is not None or epoch_stage_of(text) is not None)


def _is_filler(row: Sequence[str], columns: Columns, words: EventWords) -> bool:
    """Whether a row is one of units or sums, without an onset and without a stage or an event."""
    assert columns.begin is not None
    onset = row[columns.begin].strip()
    if onset.startswith("[") and onset.endswith("]"):
        return True
    said = [row[place].strip() for place in (columns.name, columns.stage) if place is not None]
    return not onset and not any(words.stands_as_stage(text) or words.tells_an_event(text) for text in said)


def _missing(row: Sequence[str], column: int) -> bool:
    return column >= len(row) or row[column].strip().casefold() in _MISSING
