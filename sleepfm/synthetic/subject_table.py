"""The table of a cohort's invented people, as NSRR publishes one: a row a person, with holes."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from sleepfm.config import Config
from sleepfm.errors import UsageError
from sleepfm.files import write_atomic
from sleepfm.synthetic.subject import Subject, draw_subject

# Of three in a row. Families of the Cleveland Family Study are as large as this and larger.
_FAMILY = 3
# No values of the literature: a table is never complete, and how far is modest here.
_BMI_MISSING = 0.1
_BMI_MEDIAN, _BMI_LOG_SD = 27.5, 0.18


class LayoutTable(Config):
    """Where the table is, and what stands in each column: a pattern with fields of :class:`TableRow`, or the codes of sexes."""

    path: str
    columns: dict[str, str | dict[str, str]] = Field(min_length=1)


@dataclass(frozen=True)
class TableRow:
    """What is told of a person: ``age`` in years, ``bmi`` in kg/m2, ``ahi`` the events an hour of sleep that were aimed at."""

    number: int
    family: int
    sex: str
    age: float
    bmi: float | None
    ahi: float


def row_of(subject: Subject, number: int) -> TableRow:
    """The row of a person whose recording has ``number`` in its name."""
    rng = subject.rng("table")
    drawn = "female" if rng.random() < 0.5 else "male"
    bmi = float(_BMI_MEDIAN * np.exp(_BMI_LOG_SD * np.clip(rng.standard_normal(), -2.5, 2.5)))
    known = None if rng.random() < _BMI_MISSING else bmi
    return TableRow(number, 1 + subject.number // _FAMILY, subject.sex or drawn, subject.age, known, subject.index)


def write_table(path: Path, table: LayoutTable, first: int, subjects: int, seed: int) -> None:
    """Write the rows of the first ``subjects`` people, whose recordings are numbered from ``first``, to ``path``.

    A table of fewer people of the same cohort is replaced.

    Raises:
        UsageError: something else is there.
        StorageError: it cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for number in range(subjects):
        row = row_of(draw_subject(seed, number), first + number)
        writer.writerow([_cell(text, row) for text in table.columns.values()])
    content = buffer.getvalue().encode()
    if path.exists() and not content.startswith(path.read_bytes()):
        raise UsageError(f"{path}: exists and is not the table of this cohort; move it away, or give another folder")
    write_atomic(path, content)


def _cell(pattern: str | dict[str, str], row: TableRow) -> str:
    if isinstance(pattern, dict):
        return pattern[row.sex]
    values = asdict(row)
    return "" if row.bmi is None and "{bmi" in pattern else pattern.format(**values)
