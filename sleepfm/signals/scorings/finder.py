"""Which scoring file belongs to a recording, by the cohort's patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from sleepfm.errors import AnnotationError
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.files import matching_files, name_below
from sleepfm.signals.recording import read_edf_header

# Folders above a recording in which its scoring is looked for: NSRR keeps both two levels below the cohort.
_LEVELS = 4
# Characters that stand for themselves in a pattern, and those by which one may match the names of several recordings.
_QUOTED = re.compile(r"\[[*?\[]\]")
_WILD = re.compile(r"[*?]|\[[^\]]*[-!0-9]")
_RECORDINGS = (".edf", ".bdf")
# Scorings that are kept in mind, so that memory does not grow with the cohort, and what is shown of those that serve several.
_KEPT = 100_000
_SHOWN = 8


@dataclass(frozen=True)
class FoundScoring:
    """What :func:`find_scoring` came to, handed on so that nobody looks again; ``file`` is None where there is none."""

    file: Path | None


def find_scoring(
    edf: Path,
    root: Path | None,
    cohort: Cohort,
    header: EdfHeader | None = None,
    names_below: Path | None = None,
    others: Mapping[Path, EdfHeader] = MappingProxyType({}),
) -> Path | None:
    """The scoring file of the recording ``edf`` by the cohort's patterns, or None.

    Each pattern is tried in the recording's folder; one that names a folder of scorings also in those above it, up to
    ``root`` and at least where NSRR keeps its annotations. A file alone in a folder above may be of another recording of
    this name. Of what a pattern with wild cards matches, a file that has the longer name of another recording beside ``edf`` in
    its own belongs to that one: ``P10_stages.csv`` to ``P10.edf`` and not to ``P1.edf``.

    Args:
        header: of the recording, where it was read before.
        names_below: the folder that messages name files relative to; None for whole paths.
        others: headers of files of annotations that were read before.

    Raises:
        AnnotationError: several files match equally well.
    """
    called = name_below(edf, names_below)
    folder = edf.parent
    above = [folder, *folder.parents][: _LEVELS + 1]
    if root is not None and root in folder.parents:
        above = [folder, *folder.parents][: max(_LEVELS, folder.parents.index(root) + 1) + 1]
    for name in _filled_in(edf, cohort, _literal):
        for place in above if "/" in name else above[:1]:
            found = [path for path in _matching(place, name, names_below) if path != edf]
            if found and _WILD.search(_QUOTED.sub("", name.rpartition("/")[2])):
                found = _without_others(edf, found, names_below)
            if found:
                return _only(edf, found, called)
    if cohort.scoring.same_header:
        return _only(edf, _with_same_header(edf, cohort.scoring.same_header, header, names_below, others), called)
    return None


class SharedScorings:
    """Scorings that were taken for several recordings, told as recordings pass.

    A night that is there in two formats under one name is one recording to this.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, str] = {}
        self._shared: dict[Hashable, list[str]] = {}

    def add(self, scoring: Hashable, recording: str) -> None:
        """``scoring``, by whatever tells one from another, is used for ``recording``."""
        if scoring in self._first or len(self._first) < _KEPT:
            first = self._first.setdefault(scoring, recording)
            if PurePath(first).with_suffix("") != PurePath(recording).with_suffix(""):
                self._shared.setdefault(scoring, [first]).append(recording)

    def lines(self, name: Callable[[Any], str]) -> list[str]:
        """One for each of them, which it calls by ``name`` of what was told of it."""
        return [
            f"{name(scoring)} is taken for {len(recordings)} recordings: {', '.join(recordings[:_SHOWN])}"
            f"{', ...' if len(recordings) > _SHOWN else ''}; if it belongs to only one of them, rename files so that "
            "`scoring.files` matches only that one"
            for scoring, recordings in list(self._shared.items())[:_SHOWN]
        ]


def passed_over(edf: Path, root: Path | None, cohort: Cohort, found: Path, names_below: Path | None = None) -> list[Path]:
    """Scoring files that other patterns of the cohort find for the recording ``edf`` beside the one that is read, ``found``."""
    others: list[Path] = []
    for pattern in cohort.scoring.files:
        alone = cohort.model_copy(update={"scoring": cohort.scoring.model_copy(update={"files": (pattern,), "same_header": ""})})
        try:
            other = find_scoring(edf, root, alone, names_below=names_below)
        except AnnotationError:
            continue  # several fit it, of which none is read
        if other is not None and other not in (found, *others):
            others.append(other)
    return others


def looked_for(edf: Path, cohort: Cohort) -> list[str]:
    """What :func:`find_scoring` looks for, in order, relative to the recording's folder and those above it."""
    beside = [f"{cohort.scoring.same_header} of the same patient and start"] if cohort.scoring.same_header else []
    return [*_filled_in(edf, cohort, str), *beside]


def _filled_in(edf: Path, cohort: Cohort, quote: Callable[[str], str]) -> Iterator[str]:
    """The cohort's patterns for the recording ``edf``."""
    key = re.search(cohort.scoring.key, edf.name) if cohort.scoring.key else None
    for pattern in cohort.scoring.files:
        if key is not None or "{key}" not in pattern:
            yield pattern.format(stem=quote(edf.stem), folder=quote(edf.parent.name), key=quote(key[0] if key else ""))


def _matching(folder: Path, pattern: str, names_below: Path | None) -> list[Path]:
    try:
        return matching_files(folder, pattern)
    except OSError as error:
        name = name_below(folder, names_below)
        raise AnnotationError(f"{name}: cannot be searched for a scoring ({error.strerror or error})") from error


def _without_others(edf: Path, found: list[Path], names_below: Path | None) -> list[Path]:
    """Those of ``found`` whose name holds that of no other recording beside ``edf`` which is longer and has its name in it."""
    # A scoring may be an EDF file; of these nobody knows yet which are recordings.
    if all(path.suffix.lower() in _RECORDINGS for path in found):
        return found
    longer = [
        path.stem
        for path in _matching(edf.parent, f"*{_literal(edf.stem)}*", names_below)
        if path.suffix.lower() in _RECORDINGS and path.stem != edf.stem
    ]
    return [path for path in found if path.suffix.lower() in _RECORDINGS or not any(stem in path.name for stem in longer)]


def _literal(text: str) -> str:
    """``text`` for use inside a glob pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _with_same_header(
    edf: Path, pattern: str, header: EdfHeader | None, names_below: Path | None, others: Mapping[Path, EdfHeader]
) -> list[Path]:
    candidates = [path for path in _matching(edf.parent, pattern, names_below) if path != edf]
    if not candidates:
        return []
    mine = header or read_edf_header(edf, name_below(edf, names_below))
    if mine.start is None:
        return []
    found = []
    for path in candidates:
        other = others.get(path) or read_edf_header(path, name_below(path, names_below))
        if not other.ordinary and (other.patient, other.start) == (mine.patient, mine.start):
            found.append(path)
    return found


def _only(edf: Path, found: list[Path], name: str) -> Path | None:
    # A scoring exported beside each format of a recording has the same ending as that recording.
    same = [path for path in found if path.suffix.lower() == edf.suffix.lower()]
    best = same if same else found
    if len(best) > 1:
        names = ", ".join(path.name for path in best)
        raise AnnotationError(f"{name}: several scorings fit: {names}; keep one")
    return best[0] if best else None
