"""Whose a recording is: record, subject and visit, from its file name or path by the cohort's rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import Rules, cohort_names, load_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.record_names import RecordName, common_folders, safe_key, stem_key

# A number of the person, a word or a sign, a number of the night: P01_night1.edf, 7-2.edf, pat 12 psg 1.edf.
_PERSON_AND_NIGHT = re.compile(r"(?P<subject>.*\d[A-Za-z]?)(?P<between>[\s_.-]+(?:[A-Za-z]+[\s_.-]*)?)\d+\.[A-Za-z]+")
# What may be a person's name, where no second person has it.
_WORD = re.compile(r"[^\W\d_]{3,}")
_EXAMPLE = r"^(?P<subject>P\d+)_night(?P<visit>\d)"
_KEPT = 10_000
_APART = "so two nights of one person may come into different splits"
_ALONE = "it counts as a person of its own, so another night of this person may come into another split"


@dataclass(frozen=True)
class Identity:
    """``record`` names the recording, ``subject`` the person (the same for all visits), ``visit`` the night.

    ``read`` says whether the path says whose it is; otherwise the subject is the file's own.
    """

    record: str
    subject: str
    visit: str
    read: bool = True


def identify(path: Path, cohort: Cohort, name: RecordName | None = None) -> Identity:
    """Identity of the recording at ``path``, in characters that are safe in file names and archive members.

    ``name`` is what it is called among those of its folder; without it nothing is known but its file name.
    """
    name = name or RecordName.alone(path.name)
    rule = cohort.identity
    match = _search(rule.pattern, name.path) if rule.pattern else None
    groups = match.groupdict() if match else {}
    return Identity(
        record=name.record,
        subject=rule.prefix + safe_key(groups.get("subject") or name.person),
        visit=safe_key(groups.get("visit") or "1"),
        read=bool(groups.get("subject")),
    )


def _search(pattern: str, path: str) -> re.Match[str] | None:
    """A pattern with a slash is about folders too; any other one is about file names, wherever the files are."""
    return re.search(pattern, path if "/" in pattern else PurePosixPath(path).name)


def check_identity(paths: Iterable[str], cohort: Rules) -> None:
    """Raises :class:`ConfigError` where the identity pattern that somebody wrote for these recordings fits none of them.

    ``paths`` are below the folder of the recordings, with slashes.
    """
    if not isinstance(cohort, Cohort) or not cohort.identity.pattern:
        return
    # The rules that are shipped are used for recordings of other names too.
    if cohort.identity.pattern in {load_cohort(name).identity.pattern for name in cohort_names()}:
        return
    pattern, folders = cohort.identity.pattern, "/" in cohort.identity.pattern
    names = [path if folders else PurePosixPath(path).name for path in paths]
    if not any(_search(pattern, name) for name in names):
        where = (
            "since it has a slash, it is searched in the path below the folder that was given, with the file's ending"
            if folders
            else "it is searched in the file name with its ending; to search it in the path, write it with a slash"
        )
        raise ConfigError(
            f"cohort {cohort.name}: identity.pattern {pattern!r} fits none of the {len(names)} file "
            f"{'paths' if folders else 'names'} here, such as {names[0]!r}; {where}"
        )


class UnreadNames:
    """Recordings whose paths do not say whose they are, told one by one; of many the first are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._paths: list[str] = []
        self._persons: set[str] = set()

    def add(self, path: str, person: str) -> None:
        """The recording at ``path``, below the folder of recordings, is one of them, and counts as one of ``person``."""
        self.count += 1
        self._persons.add(person)
        if len(self._paths) < _KEPT:
            self._paths.append(path)

    def warning(self, total: int) -> str:
        """What doctor and build say of them among ``total`` recordings."""
        pattern, example = proposed_pattern(self._paths)
        part = "path (a pattern with a slash is searched below the folder of recordings)" if "/" in pattern else "name"
        say = f"say in a cohort file which part of the {part} is the person, such as identity: {{pattern: '{pattern}'}}"
        rule = "whose recording it is by the identity rule of"
        if self.count == 1:
            which = f"the file name {example}" if total == 1 else f"1 of {total} file names, {example},"
            return f"{which} does not say {rule} its cohort: {_ALONE}; {say}"
        return (
            f"{self.count} of {total} file names, such as {example}, do not say {rule} their cohort: {self._told(total)}; {say}"
        )

    def _told(self, total: int) -> str:
        """As how many persons they count, and what follows for the splits."""
        persons = len(self._persons)
        if persons == self.count:
            return f"each counts as a separate person, {_APART}"
        if persons > 1:
            same = "files of one folder that differ in their ending alone are one person's"
            return f"they count as {persons} persons, since {same}; any other two are of different persons, {_APART}"
        together = "they count as 1 person, since they differ in their ending alone, and come into one split"
        return together if self.count == total else f"{together}; another night of this person may come into another one"


def proposed_pattern(paths: Sequence[str]) -> tuple[str, str]:
    """An identity pattern for most of the recordings at ``paths``, as YAML quotes it, with one of them that it fits.

    Where the files of several folders have the same names, it is about the folders. Else the last number of a name is the night,
    and what stands before it the person. A pattern has the words of the names in it: it is an example from nowhere where half of
    the names do not have them, or where they may be one person's name.
    """
    if (found := _folder_pattern(paths)) is not None:
        return found
    names = [PurePosixPath(path).name for path in paths]
    shapes: dict[str, list[re.Match[str]]] = {}
    for name in names:
        if match := _PERSON_AND_NIGHT.fullmatch(name):
            subject, between = (re.sub(r"\d+", r"\\d+", re.escape(match[group])) for group in ("subject", "between"))
            shapes.setdefault(f"^(?P<subject>{subject}){between}(?P<visit>\\d+)", []).append(match)
    pattern, matches = max(shapes.items(), key=lambda item: len(item[1]), default=("", []))
    persons = {match["subject"] for match in matches}
    if 2 * len(matches) <= len(names) or (len(persons) < 2 and _WORD.search(matches[0]["subject"] + matches[0]["between"])):
        return _EXAMPLE, names[0]
    return pattern.replace("'", "''"), matches[0].string


def _folder_pattern(paths: Sequence[str]) -> tuple[str, str] | None:
    """The pattern where most files have the name of a file in another folder, with such a file; None where they have not.

    The person is then the first folder in which the paths differ, ``P1`` of ``P1/night2/psg.edf``; or, where there are no fewer
    names than such folders, the file's name, as in ``night1/P01.edf``. No name of a folder comes into the pattern.
    """
    parts = [PurePosixPath(path).parts for path in paths]
    depth = common_folders(parts)
    # By the stem: one night may be there in two formats.
    places: dict[str, set[str]] = {}
    for item in parts:
        if len(item) > depth + 1:
            places.setdefault(stem_key(item[-1]), set()).add(item[depth])
    shared = [path for path, item in zip(paths, parts, strict=True) if len(places.get(stem_key(item[-1]), ())) > 1]
    if 2 * len(shared) <= len(paths):
        return None
    above = "[^/]+/" * depth
    if len(set().union(*places.values())) > len(places):
        return rf"^{above}(?P<subject>[^/]+)/", shared[0]
    return rf"^{above}(?P<visit>[^/]+)/.*?(?P<subject>[^/]+)\.[A-Za-z]+$", shared[0]
