"""A laboratory's own words: columns and stages put into words that the readers of every format know, events told to them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from xml.etree.ElementTree import Element

from sleepfm.signals.cohorts.cohort import ScoringRules
from sleepfm.signals.edf.annotations import Annotation
from sleepfm.signals.scorings.event_words import KNOWN, EventWords
from sleepfm.signals.scorings.rows import iter_lines
from sleepfm.signals.scorings.table_columns import delimiter_of, find_titles, split
from sleepfm.signals.scorings.vocabulary import fold

# A unit or a form of times behind a title: "Begin (s)", "Begin [hh:mm:ss]".
_BEHIND = re.compile(r"\s*[\[(][^\])]*[\])]\s*$")
# Lines that a program may write before the titles.
_PREAMBLE = 100
# Cells of a list without titles: the number of an epoch and a stage.
_LIST = 2
# Of the titles in a message: characters of each, and how many.
_SHOWN = 40
_MOST_SHOWN = 20


@dataclass(frozen=True)
class OwnWords:
    """What a cohort says of its words.

    Attributes:
        columns: folded title without its unit -> what the column holds; stages: folded text -> stage, as a table names it.
        events: which event a text names.
        titles: those of ``columns`` as they are written.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    events: EventWords = KNOWN
    titles: tuple[str, ...] = ()

    @classmethod
    def of(cls, rules: ScoringRules) -> OwnWords:
        """The words in a cohort's rules."""
        return cls(
            {_bare(title): column for title, column in rules.columns.items()},
            {fold(text): stage for text, stage in rules.stages.items()},
            EventWords.of(rules),
            tuple(rules.columns),
        )

    def in_text(self, text: str) -> str:
        """A scoring file of plain text in known words. Lines keep their numbers; those without an own word stay as they are."""
        if self.columns:
            text = self._with_titles(text)
        return self._with_stages(text) if self.stages else text

    def missing_titles(self, text: str) -> str:
        """What to tell of titles under ``columns`` that the table ``text``, as its file has it, has not; empty without any."""
        rows = [_cells(line)[0] for _, line in islice(iter_lines(text), _PREAMBLE) if line.strip() and not line.startswith("#")]
        if not self.titles or not rows:
            return ""
        # Titles are those that an own word is among, else the first row with most cells.
        found = next((row for row in rows if any(_bare(cell) in self.columns for cell in row)), max(rows, key=len))
        there = {_bare(cell) for cell in found}
        missing = [title for title in self.titles if _bare(title) not in there]
        if not missing:
            return ""
        shown = [repr(cell.strip()[:_SHOWN]) for cell in found[:_MOST_SHOWN] if cell.strip()]
        more = [f"{len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
        return (
            f"the table has no title {', '.join(map(repr, missing))}, which `columns` of the cohort file names; its titles are "
            f"{', '.join([*shown, *more])}"
        )

    def in_xml(self, root: Element) -> Element:
        """NSRR's XML in known words, in place."""
        for concept in root.iter("EventConcept") if self.stages else ():
            concept.text = self._written_out(concept.text or "")
        return root

    def in_annotations(self, annotations: Sequence[Annotation]) -> Sequence[Annotation]:
        """Texts of EDF+ in known words."""
        if not self.stages:
            return annotations
        return [replace(item, text=self._written_out(item.text)) for item in annotations]

    def _written_out(self, text: str) -> str:
        """A stage as it can be mistaken for nothing else where texts of every kind stand."""
        stage = self.stages.get(fold(text))
        return text if stage is None else f"Sleep stage {stage}"

    def _with_titles(self, text: str) -> str:
        lines = [line for _, line in iter_lines(text)]
        for place, line in enumerate(lines[:_PREAMBLE]):
            cells, delimiter = _cells(line)
            known = [self._title(cell) for cell in cells]
            if known != cells:
                lines[place] = _joined(known, delimiter)
                return "\n".join([*lines, ""])
        return text

    def _title(self, title: str) -> str:
        column = self.columns.get(_bare(title))
        unit = _BEHIND.search(title)
        return title if column is None else f"{column}{unit[0].rstrip() if unit else ''}"

    def _with_stages(self, text: str) -> str:
        titles = find_titles(text)
        lines = []
        for number, line in iter_lines(text):
            cells, delimiter = _cells(line, titles.delimiter if titles else "")
            if titles is None:
                known = [self._stage(cell) if len(cells) <= _LIST or not _is_number(cell) else cell for cell in cells]
            elif number > titles.line:
                places = (titles.columns.stage, titles.columns.name)
                known = [self._stage(cell) if place in places else cell for place, cell in enumerate(cells)]
            else:
                known = cells
            lines.append(line if known == cells else _joined(known, delimiter))
        return "\n".join([*lines, ""])

    def _stage(self, text: str) -> str:
        return self.stages.get(fold(text), text)


def _bare(title: str) -> str:
    """A title folded, without what is in brackets behind it."""
    return fold(_BEHIND.sub("", title))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?[\d.]+\s*", text) is not None


def _cells(line: str, delimiter: str = "") -> tuple[list[str], str]:
    """The cells of ``line``, and what separates them; one cell where it is no row of a table."""
    delimiter = delimiter or delimiter_of(line)
    try:
        # Of words with blanks between them nobody knows which belong together.
        return ([line] if delimiter == " " else split(line, delimiter)), delimiter
    except csv.Error:
        return [line], delimiter


def _joined(cells: Sequence[str], delimiter: str) -> str:
    if len(cells) == 1:
        return cells[0]
    row = io.StringIO()
    csv.writer(row, delimiter=delimiter, lineterminator="").writerow(cells)
    return row.getvalue()
