"""What is known of the person of every recording: from the data set, or from a table of the user's."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sleepfm.config import Config
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.errors import SubjectTableError
from sleepfm.signals.cohorts.subject_rules import NO_VALUE
from sleepfm.signals.people import Person
from sleepfm.tasks import RecordingTask

# Far more than a row for everybody who has ever been recorded in a laboratory.
_LARGEST_TABLE = 256 * 2**20
_COLUMNS = ("age", "sex", "bmi", "ahi")
_SHOWN = 40


class ValueTable(Config):
    """A table (CSV, first row titles) with a row a person, or a row a recording."""

    file: str = Field(min_length=1)
    key: str = "subject"
    """The column that names the person as ``records.parquet`` of the data set does (``subject``), or the recording
    (``record``)."""
    of: str = Field(default="subject", pattern="^(subject|record)$")
    """Whether a row is of a person with all recordings, or of one recording."""
    column: str = ""
    """The column with the value; that of the task unless stated."""


@dataclass(frozen=True)
class Values:
    """Where the values of a task are read, and of which recordings.

    Attributes:
        told: in words, for the model card.
    """

    told: str
    _task: RecordingTask
    _table: Mapping[str, float] | None
    _by_record: bool

    @classmethod
    def of(cls, task: RecordingTask, table: ValueTable | None) -> Values:
        """Those of ``table``, or of the data set where it is None.

        Raises:
            SubjectTableError: the table cannot be read, lacks a column, gives somebody two values, or a cell is no value of the
                task.
        """
        if table is None:
            return cls(f"{task.value.column}, in the table of people of the data set", task, None, False)
        column = table.column or task.value.column
        found = _read(Path(table.file), table.key, column, task)
        return cls(f"{column} by {table.of}, from {Path(table.file).name}", task, found, table.of == "record")

    def target(self, dataset: Dataset, row: int) -> float:
        """What is to be learnt of recording ``row``; nan where nothing is known.

        Raises:
            SubjectTableError: what the data set knows of the person is no value of the task.
        """
        if self._table is not None:
            return self._table.get(dataset.names[row] if self._by_record else dataset.subjects[row], math.nan)
        column = self._task.value.column
        try:
            return self._task.target(_known(dataset.people.of(row), column))
        except ValueError as error:
            raise SubjectTableError(
                f"{dataset.origin}: {column} of {dataset.names[row]} {error}; task {self._task.name}"
            ) from error

    def check(self, mixture: Mixture) -> None:
        """Somebody is known. Raises :class:`SubjectTableError`."""
        for dataset in mixture.datasets:
            if any(not math.isnan(self.target(dataset, row)) for row in range(len(dataset))):
                return
        hint = (
            "the keys of the table are not those of `sleepfm info`"
            if self._table
            else "build the data set with a table of its people (docs/shards.md), or name one in values.file"
        )
        raise SubjectTableError(f"{mixture.origin}: no person has a value for the task {self._task.name} ({self.told}); {hint}")


def _known(person: Person, column: str) -> float | str | None:
    found: float | str | None = getattr(person, column) if column in _COLUMNS else person.more.get(column)
    return found


def _read(path: Path, key: str, column: str, task: RecordingTask) -> dict[str, float]:
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise SubjectTableError(f"{path}: larger than {_LARGEST_TABLE >> 20} MiB; keep only the columns {key} and {column}")
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if lacking := [name for name in (key, column) if name not in (rows.fieldnames or ())]:
                raise SubjectTableError(
                    f"{path}: no column {lacking[0]!r}; it has {', '.join(map(str, rows.fieldnames or ['no titles']))}"
                )
            found: dict[str, float] = {}
            for row in rows:
                name, text = (str(row[title] or "").strip() for title in (key, column))
                if not name or text.lower() in NO_VALUE:
                    continue
                value = _value(path, rows.line_num, column, text, task)
                if found.setdefault(name, value) != value:
                    raise SubjectTableError(
                        f"{path}: line {rows.line_num}: {name[:_SHOWN]} has another {column} above; keep one row for each, or "
                        "give one row for each recording and set values.of=record"
                    )
            return found
    except OSError as error:
        raise SubjectTableError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SubjectTableError(f"{path}: is not a CSV file in UTF-8 ({error})") from error


def _value(path: Path, line: int, column: str, text: str, task: RecordingTask) -> float:
    try:
        return task.target(text)
    except ValueError as error:
        raise SubjectTableError(
            f"{path}: line {line}: column {column}: {text[:_SHOWN]!r} is not a value of task {task.name} ({error}); leave the "
            "cell "
            "empty where nothing is known"
        ) from error
