"""What a cohort's tables say of its people: found by the rules of the cohort file, read once, looked up by subject and visit."""

from __future__ import annotations

import csv
import fnmatch
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from sleepfm.errors import SubjectTableError
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.subject_rules import NO_VALUE, OLDEST, QUANTITIES, SubjectColumn, SubjectTable
from sleepfm.signals.files import is_folder, matching_files, name_below, random_file
from sleepfm.signals.record_names import safe_key
from sleepfm.wording import counted, for_number

# NSRR keeps tables in `datasets` beside `polysomnography`; a folder of cohorts has one below each.
_BESIDE = "datasets/*.csv"
_PLACES = ("*.csv", _BESIDE, "*/datasets/*.csv")
_EVERY_VISIT = ""
# Stands in the place of a source of what two rows differ in.
_DISPUTED = "disputed"


@dataclass(frozen=True)
class Person:
    """What is known of a person at a visit; None, or absent, where nothing is.

    Attributes:
        family: key of the family, empty where none is known. It is the same at all visits.
        age: in years, 90 for all above 89.
        sex: ``female`` or ``male``.
        bmi: in kg/m2.
        ahi: apneas and hypopneas an hour of sleep, by the cohort's own rule.
        more: what else the cohort file asks for, as text.
        sources: file and column that each value is from.
    """

    family: str = ""
    age: float | None = None
    sex: str | None = None
    bmi: float | None = None
    ahi: float | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything is known but the family."""
        return bool(self.sources)


NOBODY = Person()
_VALUES = tuple(name for name in (item.name for item in fields(Person)) if name in (*QUANTITIES, "sex"))


@dataclass
class TableReport:
    """One table as it was read: its cohort, its name below the source, how many people it has, and what is wrong with it.

    ``problems`` counts cells by what is wrong; each names the first line. ``older`` are files of the same pattern that were not
    read. No text of the table is among them.
    """

    cohort: str
    file: str
    people: int = 0
    columns: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    problems: Counter[str] = field(default_factory=Counter)
    first_line: dict[str, int] = field(default_factory=dict)

    def add(self, problem: str, line: int) -> None:
        """A cell in ``line`` has ``problem``."""
        self.problems[problem] += 1
        self.first_line.setdefault(problem, line)

    def lines(self) -> Iterator[str]:
        """The report, a line each."""
        known = ", ".join(self.columns) or "nothing"
        yield f"{self.file} (cohort {self.cohort}): {counted(self.people, 'person')}; {known} known of them"
        if self.older:
            yield f"{self.file}: not read, since of several versions the last counts: {', '.join(self.older)}"
        for problem, count in self.problems.items():
            line = self.first_line[problem]
            they_count = f"{for_number(count, 'it')} {for_number(count, 'counts')}"
            cells = f" ({counted(count, 'cell')}, first in line {line}); {they_count} as not known"
            yield f"{self.file}: {problem}{cells if line else ''}"


class KnownPeople:
    """What all tables that were found say, by cohort, subject and visit.

    Attributes:
        reports: of each table, in the order they were read.
        families: key of the family of each subject that has one.
        not_found: patterns of the tables of each cohort of which none was found.
        families_not_found: patterns of the tables with families of each cohort of which none of these was found.
    """

    def __init__(self) -> None:
        self.reports: list[TableReport] = []
        self.families: dict[str, str] = {}
        self.not_found: dict[str, tuple[str, ...]] = {}
        self.families_not_found: dict[str, tuple[str, ...]] = {}
        # Of each cohort its tables in order, by subject and visit.
        self._tables: dict[str, list[dict[tuple[str, str], Person]]] = {}

    def has_table(self, cohort: str) -> bool:
        """Whether a table of ``cohort`` was found."""
        return cohort in self._tables

    def of(self, cohort: str, subject: str, visit: str) -> Person:
        """What is known of ``subject`` at ``visit``; :data:`NOBODY` where no table has that person."""
        person = NOBODY
        for table in self._tables.get(cohort, ()):
            person = _merged(person, table.get((subject, visit)) or table.get((subject, _EVERY_VISIT), NOBODY))
        return replace(person, family=self.families.get(subject, ""))

    def lines(self, cohorts: Collection[str]) -> Iterator[str]:
        """What was read, what in it is not understood, and of which of ``cohorts`` no table was found, a line each."""
        for report in self.reports:
            yield from report.lines()
        for cohort in sorted(set(cohorts) & self.not_found.keys()):
            yield f"cohort {cohort}: no table of its people was found (looked for {', '.join(self.not_found[cohort])})"

    def add(self, cohort: str, table: dict[tuple[str, str], Person]) -> None:
        """A further table of ``cohort``, by subject and visit."""
        self._tables.setdefault(cohort, []).append(table)


def read_people(
    source: Path,
    cohorts: Iterable[Cohort],
    folder: Path | None = None,
    kept: Callable[[str], str] = lambda key: key,
) -> KnownPeople:
    """What the tables of ``cohorts`` say that are found in ``source``, or instead in ``folder``.

    Args:
        source: of recordings; a recording's folder where it is one.
        kept: what stands for the key of a subject or a family in what is written.

    Raises:
        SubjectTableError: a table cannot be read, lacks its key, or gives a person two families, or there is none in ``folder``.
    """
    root = folder or (source if is_folder(source) else source.parent)
    known = KnownPeople()
    tabled = [cohort for cohort in cohorts if cohort.subjects]
    files = _tables_in(root) if tabled else []
    for cohort in tabled:
        missing = []
        for table in cohort.subjects:
            if not (found := _matching(files, table.files)):
                missing.append(table)
                continue
            *older, file = found
            report = TableReport(cohort.name, name_below(file, root), older=tuple(name_below(path, root) for path in older))
            known.reports.append(report)
            known.add(cohort.name, _read(file, table, cohort, known.families, report, kept))
        if len(missing) == len(cohort.subjects):
            known.not_found[cohort.name] = _patterns(missing)
        related = [table for table in cohort.subjects if table.family]
        if related and all(table in missing for table in related):
            known.families_not_found[cohort.name] = _patterns(related)
    if folder is not None and not known.reports:
        raise SubjectTableError(f"{folder}: does not contain any table of people that a cohort file names under `subjects`")
    return known


def _patterns(tables: Iterable[SubjectTable]) -> tuple[str, ...]:
    return tuple(pattern for table in tables for pattern in table.files)


def _merged(first: Person, second: Person) -> Person:
    """``first``, with what only ``second`` knows."""
    if not second.known or not first.known:
        return first if first.known else second
    values = {name: getattr(first, name) if getattr(first, name) is not None else getattr(second, name) for name in _VALUES}
    return Person(**values, more={**second.more, **first.more}, sources={**second.sources, **first.sources})


def _tables_in(root: Path) -> list[Path]:
    try:
        # A store that has listed the folder need not be asked whether there is such a folder in it.
        places = [place for place in _PLACES if place != _BESIDE or is_folder(root / "datasets")]
        return [path for place in places for path in matching_files(root, place)]
    except OSError as error:
        raise SubjectTableError(f"{root}: cannot be searched for tables of people ({error.strerror or error})") from error


def _matching(files: Iterable[Path], patterns: Iterable[str]) -> list[Path]:
    """Those that the first fitting pattern fits, the last version last."""
    for pattern in patterns:
        if found := [path for path in files if fnmatch.fnmatchcase(path.name, pattern)]:
            return sorted(found, key=lambda path: (_version(path.name), str(path)))
    return []


def _version(name: str) -> list[tuple[int, str]]:
    """A name in parts that compare as versions do: 0.9 is before 0.21."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _rows(path: Path, name: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Titles, and the cells of each row with its line. Raises :class:`SubjectTableError`."""
    try:
        with random_file(path, spool=False) as file:
            content = file.read(0, file.size)
    except OSError as error:
        raise SubjectTableError(f"{name}: cannot be read ({error.strerror or error})") from error
    # Free texts in other columns may be in any encoding; keys and codes are ASCII.
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline=""), strict=True)
    try:
        titles = next(reader, None)
    except csv.Error as error:
        raise SubjectTableError(f"{name}: its first line is not a row of a table ({error})") from error
    if not titles:
        raise SubjectTableError(f"{name}: is empty; download it again, or remove it from the folder")

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise SubjectTableError(
                f"{name}: line {reader.line_num} is not a row of a table ({error}); download it again"
            ) from error

    return [title.strip() for title in titles], rows()


def _read(
    path: Path, table: SubjectTable, cohort: Cohort, families: dict[str, str], report: TableReport, kept: Callable[[str], str]
) -> dict[tuple[str, str], Person]:
    """What a table says, by subject and visit; families go into ``families``."""
    titles, rows = _rows(path, report.file)
    places = {title.casefold(): place for place, title in reversed(list(enumerate(titles)))}
    for needed, key in ((table.key, "key"), (table.visit, "visit"), (table.family, "family")):
        if needed and needed.casefold() not in places:
            raise SubjectTableError(
                f"{report.file}: has no column {needed!r}, which cohort {cohort.name} names as its {key}; the first of its "
                f"{len(titles)} columns is {titles[0]!r}. Correct `subjects` in the cohort file, or remove the table"
            )
    columns = {}
    for name, column in table.columns.items():
        if column.column.casefold() in places:
            columns[name] = (column, places[column.column.casefold()])
        else:
            report.add(f"has no column {column.column}, and says nothing of {name}", 0)
    report.columns = (*columns, *(("family",) if table.family else ()))
    sources = {name: f"{Path(report.file).name}: {column.column}" for name, (column, _) in columns.items()}
    place = {key: places[text.casefold()] for key, text in _keys(table).items()}
    seen: dict[tuple[str, str], Person] = {}
    for line, row in rows:
        cells = [cell.strip() for cell in row]
        if len(cells) != len(titles):
            raise SubjectTableError(
                f"{report.file}: line {line} has {counted(len(cells), 'cell')}, but its first line has {len(titles)}; download "
                "it again"
            )
        key = _subject_key(cells[place["key"]], table)
        visits = _visits(cells[place["visit"]] if table.visit else None, table)
        if not key or not visits:
            continue
        subject = kept(cohort.identity.prefix + safe_key(key))
        if table.family and cells[place["family"]].casefold() not in NO_VALUE:
            family = kept(f"{cohort.identity.prefix}family-{safe_key(cells[place['family']])}")
            if families.setdefault(subject, family) != family:
                raise SubjectTableError(
                    f"{report.file}: line {line} gives a person another family than an earlier line; relatives must be in one "
                    "split, so correct the table"
                )
        values = {
            name: value
            for name, (column, number) in columns.items()
            if (value := _value(cells[number], name, column, report, line)) is not None
        }
        person = _person(values, sources)
        for visit in visits:
            before = seen.get((subject, visit))
            seen[subject, visit] = person if before is None else _agreed(before, person, report, line)
    report.people = len({subject for subject, _ in seen})
    return {key: _undisputed(person) for key, person in seen.items()}


def _keys(table: SubjectTable) -> dict[str, str]:
    named = {"key": table.key, "visit": table.visit, "family": table.family}
    return {name: column for name, column in named.items() if column}


def _subject_key(text: str, table: SubjectTable) -> str:
    """The person as file names have it; empty for a row of nobody."""
    if table.key_pattern:
        match = re.search(table.key_pattern, text)
        text = match["subject"] if match else ""
    if table.lower:
        text = text.lower()
    return text.zfill(table.digits) if table.digits and text.isdigit() else text


def _visits(text: str | None, table: SubjectTable) -> tuple[str, ...]:
    """Visits of file names that a row is of."""
    if text is None:
        return tuple(safe_key(visit) for visit in table.visits) or (_EVERY_VISIT,)
    visit = table.visit_codes.get(text) if table.visit_codes else text
    return (safe_key(visit),) if visit and (not table.visits or visit in table.visits) else ()


def _value(text: str, name: str, column: SubjectColumn, report: TableReport, line: int) -> float | str | None:
    """What a cell says; None where it says nothing, or something that is not understood, which is reported."""
    code = _code(text)
    if text.casefold() in NO_VALUE or code in map(_code, column.missing):
        return None
    if column.codes:
        meaning = next((meaning for listed, meaning in column.codes.items() if _code(listed) == code), None)
        if meaning is None:
            report.add(f"{column.column} has codes that the rule does not list", line)
        return meaning
    try:
        number = float(text)
    except ValueError:
        report.add(f"{column.column} has texts that are no number", line)
        return None
    if name not in QUANTITIES:
        # Free texts may name people, and are never kept.
        return code
    quantity = QUANTITIES[name]
    number *= quantity.factors[column.unit or quantity.unit]
    if not quantity.low <= number <= quantity.high:
        report.add(f"{column.column} has values outside of {quantity.low:g} to {quantity.high:g} {quantity.unit}", line)
        return None
    return OLDEST if name == "age" and number > OLDEST - 1 else round(number, 2)


def _code(text: str) -> str:
    """A code as it is compared: whole numbers by their value, since programs write 1, 01 and 1.0."""
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", text)
    return number[1] if number else text


def _person(values: Mapping[str, float | str], sources: Mapping[str, str]) -> Person:
    named = {name: value for name, value in values.items() if name in _VALUES}
    more = {name: str(value) for name, value in values.items() if name not in _VALUES}
    return Person(**named, more=more, sources={name: sources[name] for name in values})  # type: ignore[arg-type]


def _agreed(first: Person, second: Person, report: TableReport, line: int) -> Person:
    """What two rows of one person and visit say, with what they differ in marked as disputed."""
    together = _merged(first, second)
    sources = dict(together.sources)
    for name in together.sources:
        said = {_said(first, name), _said(second, name)} - {None}
        if first.sources.get(name) == _DISPUTED or len(said) > 1:
            sources[name] = _DISPUTED
            report.add(f"two rows of one person and visit differ in {name}", line)
    return replace(together, sources=sources)


def _undisputed(person: Person) -> Person:
    """``person`` without what rows differ in."""
    disputed = {name for name, source in person.sources.items() if source == _DISPUTED}
    if not disputed:
        return person
    values = {name: None for name in _VALUES if name in disputed}
    more, sources = (
        {name: text for name, text in texts.items() if name not in disputed} for texts in (person.more, person.sources)
    )
    return replace(person, **values, more=more, sources=sources)  # type: ignore[arg-type]


def _said(person: Person, name: str) -> float | str | None:
    return getattr(person, name) if name in _VALUES else person.more.get(name)
