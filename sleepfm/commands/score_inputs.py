"""Which recordings ``sleepfm score`` is given: files, folders, patterns and URLs, and what their results are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sleepfm.errors import RecordingError, SleepFMError, UsageError
from sleepfm.signals.cohorts.catalogue import Rules
from sleepfm.signals.discover import discover_names
from sleepfm.signals.files import answering, is_folder, is_remote, location
from sleepfm.signals.record_names import common_folders, names_of_several
from sleepfm.signals.scorings.finder import FoundScoring


@dataclass(frozen=True)
class Job:
    """A recording to score, and what looking for its scoring came to where somebody has looked.

    ``record`` names its results where its file name is that of another recording of the call too; else it is empty. ``named``:
    the call names this file, so that nobody has looked whether it is a recording.
    """

    file: str
    scoring: FoundScoring | None = None
    record: str = ""
    named: bool = False


@dataclass(frozen=True)
class NoJob:
    """What was named and is no recording to score, and why."""

    file: str
    error: SleepFMError


def find_jobs(words: Iterable[str], rules: Rules, out: Path) -> Iterator[Job | NoJob]:
    """The recordings that ``words`` name, each once; in a folder those at any depth, but none below ``out``.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    met: set[str] = set()
    for word in words:
        for path in _matching(word):
            for job in _below(path, rules, out):
                if job.file in met:
                    yield NoJob(job.file, RecordingError(f"{job.file}: is named twice"))
                    continue
                met.add(job.file)
                yield job


def named_apart(found: Sequence[Job | NoJob], words: Sequence[str]) -> list[Job | NoJob]:
    """``found`` for ``words``, where recordings with equal file names have the names that a build gives them.

    A build has one folder; so the names are told below the folder that is given, or below the one that all recordings are in.
    """
    files = [job.file for job in found if isinstance(job, Job)]
    given = str(location(words[0])) if len(words) == 1 else ""
    folder = "" if given == "." else f"{given.rstrip('/')}/"
    if not given or not all(file.startswith(folder) for file in files):
        parts = [file.split("/") for file in files]
        folder = "".join(f"{part}/" for part in parts[0][: common_folders(parts)]) if parts else ""
    below = {file: file.removeprefix(folder) for file in files}
    names = names_of_several(below.values())
    return [replace(job, record=names.get(below[job.file], "")) if isinstance(job, Job) else job for job in found]


def _matching(word: str) -> list[Path]:
    """The files and folders that a word names; a name with wild cards in it may be that of a file."""
    path = location(word)
    if not glob.has_magic(word) or (not is_remote(path) and os.path.lexists(word)):
        return [path]
    if is_remote(path):
        store = cast(Any, path)
        with answering(path):
            found = sorted(location(store.fs.unstrip_protocol(name)) for name in store.fs.glob(store.path))
    else:
        found = [Path(name) for name in sorted(glob.glob(word, recursive=True))]
    if not found:
        raise UsageError(f"{word}: matches no file and no folder")
    return found


def _below(path: Path, rules: Rules, out: Path) -> Iterator[Job | NoJob]:
    try:
        if not is_folder(path):
            if is_remote(path) or path.exists():
                yield Job(str(path), named=True)
            else:
                yield NoJob(str(path), RecordingError(f"{path}: no such file or folder"))
            return
        own = _inside(path, out)
        unlisted: dict[str, str] = {}
        exclude = None if own is None else (lambda name: name.startswith(f"{own}/"))
        names = discover_names(path, rules, unlisted=unlisted, exclude=exclude)
    except OSError as error:
        yield NoJob(str(path), RecordingError(f"{path}: cannot be read ({error.strerror or error})"))
        return
    except SleepFMError as error:
        yield NoJob(str(path), error)
        return
    for folder, why in unlisted.items():
        yield NoJob(folder, RecordingError(f"{folder}: {why}"))
    for name, found in names.items():
        file = str(path / name) if name else str(path)
        try:
            found.check(file)
        except SleepFMError as error:
            yield NoJob(file, error)
            continue
        yield Job(file, found.scoring)


def _inside(folder: Path, out: Path) -> str | None:
    """``out`` relative to ``folder``, or None where it is not below it."""
    if is_remote(folder):
        return None
    try:
        relative = Path(os.path.abspath(out)).relative_to(os.path.abspath(folder)).as_posix()
    except ValueError:
        return None
    return None if relative == "." else relative
