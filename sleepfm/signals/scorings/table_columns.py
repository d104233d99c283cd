"""Which columns of a table of stages and events hold what, told by their titles, English or French."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sleepfm.signals.scorings.rows import iter_lines
from sleepfm.signals.scorings.vocabulary import fold

# Folded titles, without the unit or the form of times that may follow.
_FRENCH_CLOCK = ("heurededebut", "heuredebut")
_CLOCK = ("clocktime", "timeofday", "walltime")
_ELAPSED = ("elapsedtime", "elapsed", "timeelapsed", "relativetime", "timesincestart", "recordingtime")
_BEGIN = ("debut", "onset", "starttime", "start", "begin", "begintime", "startdatetime", "timestamp", "time")
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
_UNIT = re.compile(
    r"[\s_(\[]+(s|sec|secs|second|seconds|ms|msec|milliseconds|min|mins|minutes|h|hr|hrs|hour|hours)\s*[)\]]?\s*$", re.IGNORECASE
)
_SECONDS = {"ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3, "min": 60.0, "mins": 60.0, "minutes": 60.0}
_SECONDS |= dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0)
# "Time [hh:mm:ss]", "Start (HH:MM:SS.xxx)", "Date (dd/mm/yyyy hh:mm:ss)".
_FORM = re.compile(r"\s*[\[(](?=[^\])]*[:/])[hmsxfdyHMSDY:./\- ]+[\])]\s*$")
# Titles are no longer; expressions that search them take time with the square of their length.
_LONGEST_TITLE = 200
# Lines that a program may write before the titles.
_PREAMBLE = 100


Times = Literal["", "clock", "elapsed"]


@dataclass(frozen=True)
class Columns:
    """Places of the columns; ``begin_unit`` and ``duration_unit`` in s.

    Attributes:
        name: of events, among which stages may be; ``stage``: of stages alone. One of both is there.
        times: what the title says of times like 01:02:03, empty where it says nothing.
        titles: all of them, empty for a list.
    """

    name: int | None = None
    stage: int | None = None
    begin: int | None = None
    end: int | None = None
    duration: int | None = None
    epoch: int | None = None
    begin_unit: float = 1.0
    duration_unit: float = 1.0
    times: Times = ""
    titles: tuple[str, ...] = ()

    @property
    def placed(self) -> bool:
        """Whether a row says when it is; without it, only a list of nothing but stages can be read."""
        return self.begin is not None or self.epoch is not None or len([title for title in self.titles if title]) <= 1

    @property
    def least(self) -> int:
        """Cells that a row must have."""
        return 1 + max(place for place in (self.name, self.stage, self.begin, self.epoch, 0) if place is not None)


@dataclass(frozen=True)
class TitleRow:
    """Where the titles are: number of the line from 1, what separates cells there, and the columns."""

    line: int
    delimiter: str
    columns: Columns


def find_titles(text: str) -> TitleRow | None:
    """The first row whose titles are known, None without one. Before it may be lines that are no part of the table."""
    seen = 0
    for number, line in iter_lines(text):
        if line.startswith("#") or not line.strip():
            continue
        delimiter = delimiter_of(line)
        if delimiter == " " and columns_of([line]) is not None:
            delimiter = ","  # "Sleep Stage" is one title
        try:
            columns = columns_of(split(line, delimiter))
        except csv.Error:
            columns = None
        # Below other lines a title has to be one beyond doubt.
        if columns is not None and (seen == 0 or columns.begin is not None or columns.epoch is not None):
            return TitleRow(number, delimiter, columns)
        seen += 1
        if seen > _PREAMBLE:
            break
    return None


def delimiter_of(line: str) -> str:
    """What separates the cells of ``line``: the most frequent of comma, semicolon and tab, else blanks."""
    head = line[:4096]
    best = max(",;\t", key=head.count)
    return best if best in head or len(head.split()) < 2 else " "


def split(line: str, delimiter: str) -> list[str]:
    """The cells of one line. Raises :class:`csv.Error`."""
    return line.split() if delimiter == " " else next(csv.reader([line], delimiter=delimiter), [])


def columns_of(titles: Sequence[str]) -> Columns | None:
    """Where the known columns are, or None: a stage is needed, or an event with an onset."""
    titles = [title.strip()[:_LONGEST_TITLE] for title in titles]
    plain = [_FORM.sub("", title) for title in titles]
    units = [_SECONDS.get(match[1].lower(), 1.0) if (match := _UNIT.search(title)) else 1.0 for title in plain]
    folded = [fold(_UNIT.sub("", title)) for title in plain]

    def place(names: Sequence[str]) -> int | None:
        return next((folded.index(name) for name in names if name in folded), None)

    begin = place((*_FRENCH_CLOCK, *_BEGIN, *_ELAPSED, *_CLOCK))
    end, duration, epoch = place(_END), place(_DURATION), place(_EPOCH)
    name, stage = place(_NAME), place(_STAGE)
    if stage is None and (name is None or begin is None):
        return None
    if begin is None and epoch is None and len(folded) > 1 and not titles[0]:
        epoch = 0  # an index without a title, as pandas writes it
    return Columns(
        name=name,
        stage=stage,
        begin=begin,
        end=end,
        duration=duration,
        epoch=epoch,
        begin_unit=1.0 if begin is None else units[begin],
        duration_unit=1.0 if duration is None else units[duration],
        times=_times_of("" if begin is None else folded[begin]),
        titles=tuple(titles),
    )


def _times_of(title: str) -> Times:
    if title in (*_FRENCH_CLOCK, *_CLOCK):
        return "clock"
    return "elapsed" if title in _ELAPSED else ""
