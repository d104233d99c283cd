"""Whose a recording is: record, subject and visit, from its file name by the cohort's rule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import Rules, cohort_names, load_cohort
from sleepfm.signals.cohorts.cohort import Cohort

# A number of the person, a word or a sign, a number of the night: P01_night1.edf, 7-2.edf, pat 12 psg 1.edf.
_PERSON_AND_NIGHT = re.compile(r"(?P<subject>.*\d[A-Za-z]?)(?P<between>[\s_.-]+(?:[A-Za-z]+[\s_.-]*)?)\d+\.[A-Za-z]+")
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
    stem = _safe(path.stem)
    return Identity(
        record=stem,
        subject=rule.prefix + _safe(groups.get("subject") or stem),
        visit=_safe(groups.get("visit") or "1"),
        read=bool(groups.get("subject")),
    )


def check_identity(paths: Iterable[Path], cohort: Rules) -> None:
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
            f"such as {names[0]!r}; it has to match the name with its ending"
        )


def persons_not_read(count: int, total: int, example: str) -> str:
    """What doctor and build say of file names that do not say whose they are; ``example`` is one of them."""
    return (
        f"{count} of {total} file names, such as {example}, do not say whose recording it is by the rules of their cohort: each "
        "counts as a person of its own, and two nights of one person may come into different splits; say in a cohort file which "
        f"part is the person, such as identity: {{pattern: '{proposed_pattern(PurePath(example).name)}'}}"
    )


def proposed_pattern(name: str) -> str:
    """An identity pattern for names like ``name``: the last of its numbers is the night, what stands before it the person."""
    match = _PERSON_AND_NIGHT.fullmatch(name)
    if match is None:
        return r"^(?P<subject>P\d+)_night(?P<visit>\d)"
    subject, between = (re.sub(r"\d+", r"\\d+", re.escape(match[group])) for group in ("subject", "between"))
    return f"^(?P<subject>{subject}){between}(?P<visit>\\d+)".replace("'", "''")


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-") or "record"
