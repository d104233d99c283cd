"""The people of a data set: what the cohorts' tables say of each, and the split that everybody is in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.lib
import pyarrow.parquet as pq

from shards.build_config import BuildConfig, PrivacyConfig, SplitConfig, chosen_cohort
from shards.privacy import token
from shards.split import splits_of
from shards.stored_tables import check_table, told_digests
from sleepfm.data.format import DATASET_FILE, MANIFEST_FOLDER
from sleepfm.data.people import COLUMNS, person_of
from sleepfm.errors import DatasetError
from sleepfm.signals.cohorts.catalogue import all_cohorts
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.files import location
from sleepfm.signals.groups import group_of
from sleepfm.signals.people import NOBODY, KnownPeople, Person, read_people
from sleepfm.wording import counted

SUBJECTS = pa.schema(
    [
        *((name, pa.string()) for name in COLUMNS[:4]),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("bmi", pa.float64()),
        ("ahi", pa.float64()),
        ("more", pa.string()),  # JSON: what else the cohort file asks for
        ("sources", pa.string()),  # JSON: of each value the table and its column
    ]
)
# In a table of all recordings a row takes a kilobyte as Python has it.
_ROWS_AT_ONCE = 4096
# Subject, visit and cohort.
PersonKey = tuple[str, str, str]


@dataclass(frozen=True)
class Stored:
    """What the manifest of a data set says: who is in it, what is known of them, and their splits; empty where there is none."""

    people: Mapping[PersonKey, Person] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JoinedPeople:
    """Everybody in a data set, by subject, visit and cohort, and the split of each subject."""

    people: Mapping[PersonKey, Person]
    splits: Mapping[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """Of ``subjects.parquet``."""
        return [
            {
                **dict(zip(COLUMNS[:3], key, strict=True)),
                **{name: getattr(person, name) for name in COLUMNS[3:8]},
                "more": json.dumps(dict(person.more), sort_keys=True),
                "sources": json.dumps(dict(person.sources), sort_keys=True),
            }
            for key, person in sorted(self.people.items())
        ]


@dataclass(frozen=True)
class Tables:
    """What the tables of a source say, and what becomes of it.

    Attributes:
        known: of the people in them.
        keep: whether what an earlier build knew stays known where a cohort's table is not found now.
        move: whether people may come into another split than they are in.
        privacy: what is kept of names.
    """

    known: KnownPeople = field(default_factory=KnownPeople)
    keep: bool = True
    move: bool = False
    privacy: PrivacyConfig | None = None

    @classmethod
    def read(cls, source: Path, config: BuildConfig, move: bool) -> Tables:
        """Those of ``source``, by the rules and the configuration of a build.

        Raises:
            SubjectTableError: one cannot be used.
        """
        if config.subjects.use == "ignore":
            return cls(keep=False, move=move, privacy=config.privacy)
        rules = chosen_cohort(config)
        cohorts = [rules] if isinstance(rules, Cohort) else (rules or all_cohorts()).all()
        folder = location(config.subjects.folder) if config.subjects.folder else None
        known = read_people(source, cohorts, folder, lambda key: token(key, config.privacy))
        return cls(known, move=move, privacy=config.privacy)

    def person(self, key: PersonKey, stored: Stored) -> Person:
        """What is known of a person; what ``stored`` knew where no table of the cohort was found now."""
        subject, visit, cohort = key
        if self.keep and not self.known.has_table(cohort):
            return stored.people.get(key, NOBODY)
        person = self.known.of(cohort, subject, visit)
        if self.privacy is not None and self.privacy.names == "digest":
            # Names of files are not kept.
            person = replace(person, sources={name: text.rpartition(": ")[2] for name, text in person.sources.items()})
        return person


def join_people(keys: Iterable[PersonKey], config: SplitConfig, tables: Tables, stored: Stored, out: Path) -> JoinedPeople:
    """What is known of those in ``keys``, and their splits.

    Raises:
        DatasetError: somebody of ``stored`` would come into another split.
    """
    people = {key: tables.person(key, stored) for key in sorted(set(keys))}
    families = {subject: person.family for (subject, _, _), person in people.items() if person.family}
    first: dict[str, Person] = {}
    for (subject, _, _), person in people.items():
        first.setdefault(subject, person)
    splits = splits_of(
        (subject for subject, _, _ in people),
        lambda subject: families.get(subject) or subject,
        config,
        lambda subject: " ".join(group_of(first[subject], name) for name in sorted(config.stratify)),
        stored.splits,
    )
    _refuse_moves(splits, stored.splits, tables, out)
    return JoinedPeople(people, splits)


def read_stored(out: Path, config: SplitConfig) -> Stored:
    """What the manifest in ``out`` says; nothing where there is none, or one that a build writes anew.

    Raises:
        DatasetError: it is damaged, and the splits of ``config`` are known from it alone.
    """
    folder = out / MANIFEST_FOLDER
    # `dataset.json` comes last: without it a first manifest may be under way.
    if not (folder / "records.parquet").exists() and not (config.stratify and (out / DATASET_FILE).exists()):
        return Stored()
    try:
        told = told_digests(out)
        for name in ("records", "subjects"):
            check_table(out, name, told)
        people: dict[PersonKey, Person] = {}
        splits: dict[str, str] = {}
        for row in _rows(folder / "records.parquet", (*COLUMNS[:3], "split")):
            people[row["subject"], row["visit"], row["cohort"]] = NOBODY
            splits[row["subject"]] = row["split"]
        if (folder / "subjects.parquet").exists():
            for row in _rows(folder / "subjects.parquet", COLUMNS):
                people[row["subject"], row["visit"], row["cohort"]] = person_of(row)
    except (OSError, pyarrow.lib.ArrowException, ValueError, KeyError) as error:
        if config.stratify:
            raise DatasetError(
                f"{folder}: cannot be read ({str(error).splitlines()[0]}), and only this table says which person is in which "
                "split; restore it from a copy, or build into another folder"
            ) from error
        return Stored()
    return Stored(people, splits)


def _rows(table: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, of which few are in memory at once."""
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()


def check_moves(out: Path, config: SplitConfig, tables: Tables) -> None:
    """Raises :class:`DatasetError` where a build would move somebody of the data set in ``out`` to another split."""
    stored = read_stored(out, config)
    join_people(stored.people, config, tables, stored, out)


def people_lines(out: Path, tables: Tables) -> tuple[list[str], list[str]]:
    """What was read of the people in the data set ``out``, a line each, and warnings."""
    cohorts, related = set[str](), set[str]()
    for row in _rows(out / MANIFEST_FOLDER / "subjects.parquet", ("cohort", "family")):
        cohorts.add(row["cohort"])
        if row["family"]:
            related.add(row["cohort"])
    warnings = [
        f"cohort {cohort}: the table that names families was not found (looked for {', '.join(patterns)}), and relatives may "
        "come into different splits; put it into `datasets` in the source, or give its folder with subjects.folder"
        for cohort, patterns in sorted(tables.known.families_not_found.items())
        if cohort in cohorts - related
    ]
    return list(tables.known.lines(cohorts)), warnings


def _refuse_moves(splits: Mapping[str, str], before: Mapping[str, str], tables: Tables, out: Path) -> None:
    moved = sorted(subject for subject, split in before.items() if splits.get(subject, split) != split)
    if moved and not tables.move:
        first = moved[0]
        raise DatasetError(
            f"{out}: {counted(len(moved), 'person')} would move to another split, for example {first} from {before[first]} to "
            f"{splits[first]}, "
            "because of what is now known about their families; a model that was trained on the data set may have seen them. "
            "Give the table "
            "of people that the data set was built with (`subjects.folder`), or move them with --rebuild"
        )
