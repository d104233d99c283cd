"""The people of a data set, and what is known of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sleepfm.signals.people import NOBODY, Person
from sleepfm.wording import counted

# Of `subjects.parquet`; the first three say whose row it is.
COLUMNS = ("subject", "visit", "cohort", "family", "age", "sex", "bmi", "ahi", "more", "sources")


class People:
    """Whose each recording is, in the order of ``records.parquet``, and what is known of them.

    Attributes:
        subjects: key of the person of each recording.
        families: key of the family of each subject that has one. Who shares it is a relative.
    """

    def __init__(self, recordings: Iterable[tuple[str, str, str]], rows: Iterable[Mapping[str, Any]]) -> None:
        """``recordings``: subject, visit and cohort of each; ``rows`` of ``subjects.parquet``."""
        self._recordings = list(recordings)
        self.subjects = [subject for subject, _, _ in self._recordings]
        self.families: dict[str, str] = {}
        self._people: dict[tuple[str, str, str], Person] = {}
        for row in rows:
            if row["family"]:
                self.families[row["subject"]] = row["family"]
            self._people[row["subject"], row["visit"], row["cohort"]] = person_of(row)

    def __len__(self) -> int:
        return len(set(self.subjects))

    def of(self, index: int) -> Person:
        """The person of recording ``index`` at the time of that recording."""
        return self._people.get(self._recordings[index], NOBODY)

    def family(self, subject: str) -> str:
        """What people who must not be in two splits share: the family of ``subject``, else ``subject`` itself."""
        return self.families.get(subject) or subject

    def lines(self) -> list[str]:
        """How many people are known, and in what, a line each; none where nothing is known."""
        known: dict[str, set[str]] = {}
        sources: dict[str, set[str]] = {}
        for (subject, _, _), person in self._people.items():
            for name, source in person.sources.items():
                known.setdefault(name, set()).add(subject)
                sources.setdefault(name, set()).add(source)
        total = len(self)
        lines = [
            f"{name:<8} of {len(known[name])} of {counted(total, 'person')} ({', '.join(sorted(sources[name]))})"
            for name in sorted(known)
        ]
        if self.families:
            families = len(set(self.families.values()))
            lines.append(f"{'family':<8} of {len(self.families)} of {counted(total, 'person')}, {counted(families, 'family')}")
        return lines


def person_of(row: Mapping[str, Any]) -> Person:
    """The person that a row of ``subjects.parquet`` tells of."""
    return Person(
        family=row["family"] or "",
        age=row["age"],
        sex=row["sex"],
        bmi=row["bmi"],
        ahi=row["ahi"],
        more=json.loads(row["more"]),
        sources=json.loads(row["sources"]),
    )
