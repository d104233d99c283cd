"""Whose a recording is: record, subject and visit, from its file name by the cohort's rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import Rules, cohort_names, load_cohort
from sleepfm.signals.cohorts.cohort import Cohort

# A number of the person, a word or a sign, a number of the night: P01_night1.edf, 7-2.edf, pat 12 psg 1.edf.
_PERSON_AND_NIGHT = re.compile(r"(?P<subject>.*\d[A-Za-z]?)(?P<between>[\s_.-]+(?:[A-Za-z]+[\s_.-]*)?)\d+\.[A-Za-z]+")
# What may be a person's name, where no second person has it.
_WORD = re.compile(r"[^\W\d_]{3,}")
_EXAMPLE = r"^(?P<subject>P\d+)_night(?P<visit>\d)"
_KEPT = 10_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Identity:
    """``record`` names the recording, ``subject`` the person (the same for all visits), ``visit`` the night.

    ``read`` says whether the name of the file says whose it is; otherwise the subject is the file's own.
    """

    record: str
    subject: str
    visit: str
    read: bool = True


def identify(path: Path, cohort: Cohort) -> Identity:
    """Identity of the recording at ``path``, in characters that are safe in file names and archive members."""
    rule = cohort.identity
    match = re.search(rule.pattern, path.name) if rule.pattern else None
    groups = match.groupdict() if match else {}
    stem = safe_key(path.stem)
    return Identity(
        record=stem,
        subject=rule.prefix + safe_key(groups.get("subject") or stem),
        visit=safe_key(groups.get("visit") or "1"),
        read=bool(groups.get("subject")),
    )


def check_identity(paths: Iterable[PurePath], cohort: Rules) -> None:
    """Raises :class:`ConfigError` where the identity pattern that somebody wrote for these recordings fits none of them."""
    if not isinstance(cohort, Cohort) or not cohort.identity.pattern:
        return
    # The rules that are shipped are used for recordings of other names too.
    if cohort.identity.pattern in {load_cohort(name).identity.pattern for name in cohort_names()}:
        return
    names = [path.name for path in paths]
    if not any(re.search(cohort.identity.pattern, name) for name in names):
        raise ConfigError(
            f"cohort {cohort.name}: identity.pattern {cohort.identity.pattern!r} fits none of the {len(names)} file names here, "
            f"such as {names[0]!r}; it is searched in the file name with its ending"
        )


class UnreadNames:
    """File names that do not say whose they are, told one by one; of many the first are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._names: list[str] = []

    def add(self, path: str) -> None:
        """The recording at ``path`` is one of them."""
        self.count += 1
        if len(self._names) < _KEPT:
            self._names.append(PurePath(path).name)

    def warning(self, total: int) -> str:
        """What doctor and build say of them among ``total`` recordings."""
        pattern, example = proposed_pattern(self._names)
        return (
            f"{self.count} of {total} file names, such as {example}, do not say whose recording it is by the identity rule of "
            "their cohort: each counts as a separate person, so two nights of one person may come into different splits; say in "
            f"a cohort file which part of the name is the person, such as identity: {{pattern: '{pattern}'}}"
        )


def proposed_pattern(names: Sequence[str]) -> tuple[str, str]:
    """An identity pattern for most of ``names``, as YAML quotes it, with one of them that it fits.

    The last number of a name is the night, and what stands before it the person. A pattern has the words of the names in it: it
    is an example from nowhere where half of the names do not have them, or where they may be one person's name.
    """
    shapes: dict[str, list[re.Match[str]]] = {}
    for name in names:
        if match := _PERSON_AND_NIGHT.fullmatch(name):
            subject, between = (re.sub(r"\d+", r"\\d+", re.escape(match[group])) for group in ("subject", "between"))
            shapes.setdefault(f"^(?P<subject>{subject}){between}(?P<visit>\\d+)", []).append(match)
    pattern, found = max(shapes.items(), key=lambda item: len(item[1]), default=("", []))
    persons = {match["subject"] for match in found}
    if 2 * len(found) <= len(names) or (len(persons) < 2 and _WORD.search(found[0]["subject"] + found[0]["between"])):
        return _EXAMPLE, names[0]
    return pattern.replace("'", "''"), found[0].string


def safe_key(text: str) -> str:
    """``text`` in characters that are safe in file names and archive members."""
    return _UNSAFE.sub("-", text).strip("-") or "record"
