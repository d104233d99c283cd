"""Logs of Grass Twin, WSC's ``.allscore.txt``: a clock time and a text a line, durations inside the texts.

``22:33:59.00<tab>STAGE - N2`` holds until the next stage; ``RESPIRATORY EVENT - DUR: 44.9 SEC. - HYPOPNEA - DESAT 91.6 %``
is an event. Source: NSRR's WSC documentation, and the excerpts of it in Luna's documentation.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from itertools import chain
from pathlib import PurePath

from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import Clock, is_clock
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.rows import MAX_ROWS, Row, iter_lines, scoring_of_rows
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.vocabulary import stage_of

_LINE = re.compile(r"\s*(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?)[\t ]+(\S.*)")
_STAGE = re.compile(r"(?i)stage\s+-\s+(.+)")
_EVENT = re.compile(r"(?i)\*?\s*(?P<head>[a-z ]+?)\s+-\s+dur:\s*(?P<seconds>\d+(?:\.\d+)?)\s*sec\.?(?:\s+-\s+(?P<kind>[^-]+))?.*")
# Texts are shorter; expressions take time with the square of a line's length.
_LONGEST_LINE = 300
_END = re.compile(r"(?i)lights on|stop recording|recording stopped.*")


def is_event_log(text: str) -> bool:
    """Whether ``text`` begins as a log does and says a stage somewhere."""
    lines = (_LINE.match(line[:_LONGEST_LINE]) for _, line in iter_lines(text) if line.strip())
    first = next(lines, None)
    return first is not None and any(line is not None and _STAGE.match(line[2]) for line in chain([first], lines))


def read_event_log(text: str, path: PurePath, start: datetime | None, duration: float | None, words: EventWords) -> Scoring:
    """The scoring of a log; ``start`` and ``duration`` are those of the recording.

    Raises:
        StageTextError: a stage that is none of ours.
        AnnotationError: ``start`` is not known, too many lines, a time that is none, or no stages.
    """
    if start is None:
        raise AnnotationError(
            f"{path}: has clock times, but the start of its recording is unknown; repair the header of the recording"
        )
    clock = Clock([], start, duration)
    rows: list[Row] = []
    staged: tuple[float, str] | None = None
    for number, line in iter_lines(text):
        match = _LINE.fullmatch(line[:_LONGEST_LINE].rstrip())
        if match is None or not is_clock(match[1]):
            rows += _without_time(line[:_LONGEST_LINE], f"{path}: line {number}")
            continue
        if number > MAX_ROWS:
            raise AnnotationError(f"{path}: more than {MAX_ROWS} lines; a scoring of a night has fewer")
        try:
            onset = clock.read(match[1])
        except ValueError:
            rows += _without_time(line[:_LONGEST_LINE], f"{path}: line {number}")
            continue
        said = match[2].strip()
        stage, event = _STAGE.fullmatch(said), _EVENT.fullmatch(said)
        if staged is not None and (stage or _END.fullmatch(said)) and onset >= staged[0]:
            if onset > staged[0]:
                rows.append(Row(staged[0], onset - staged[0], staged[1]))
            staged = None
        if stage:
            staged = (onset, f"stage {stage[1]}")
        elif event:
            rows.append(_event(event, onset))
        else:
            # What is no stage here is none either if it reads like one.
            rows.append(Row(onset, 0.0, said if stage_of(said) is None else f"remark {said}"))
    if staged is not None:
        rest = None if duration is None or duration <= staged[0] else duration - staged[0]
        rows.append(Row(staged[0], rest, staged[1]))
    return scoring_of_rows(rows, f"event log {path.name}", str(path), words=words)


def _event(found: re.Match[str], onset: float) -> Row:
    respiratory = found["head"].casefold() == "respiratory event"
    kind = (found["kind"] or found["head"] if respiratory else found["head"]).strip()
    return Row(onset, float(found["seconds"]), kind, "respiratory" if respiratory else "")


def _without_time(line: str, where: str) -> list[Row]:
    """The event of a line whose time cannot be read; none where the line is a remark that goes on.

    Raises:
        AnnotationError: a stage without a time.
    """
    said = [line.strip(), *(part.strip() for part in line.split(maxsplit=1)[1:])]
    if any(_STAGE.fullmatch(text) for text in said):
        raise AnnotationError(f"{where}: {line.strip()[:40]!r} is a stage whose time cannot be read")
    events = [event for text in said if (event := _EVENT.fullmatch(text))]
    return [_event(event, math.nan) for event in events[-1:]]
