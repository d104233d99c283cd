"""What recordings are called among those of their folder, so that no two of different people have one name.

In many laboratories every patient has a folder, and the files in it have the same names: ``P1/psg.edf``, ``P2/psg.edf``. Doctor,
build, score and embed name such recordings alike, by more of the path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from sleepfm.signals.files import name_below

# USTAR holds 100 characters; what follows the record's key in a member's name takes up to 25.
LONGEST_KEY = 70
KEY = re.compile(rf"[0-9A-Za-z_-]{{1,{LONGEST_KEY}}}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class RecordName:
    """What one recording is called.

    Attributes:
        path: below the folder of recordings, with slashes; its file name where no folder is known.
        record: its key.
        person: stands for its person where no rule reads one from ``path``.
    """

    path: str
    record: str
    person: str

    @classmethod
    def alone(cls, file: str) -> RecordName:
        """That of a recording which is looked at by itself."""
        return cls(file, stem_key(file), stem_key(file))


def names_below(paths: Iterable[Path], root: Path) -> dict[Path, RecordName]:
    """What the recordings at ``paths`` are called, all those below ``root``, or ``root`` where that is a recording.

    They are what a first build from ``root`` calls them.
    """
    below = {name_below(path, root) if path != root else path.name: path for path in paths}
    records = name_records(sorted(below), ())
    persons = name_persons(records)
    return {below[name]: RecordName(name, record, persons[name]) for name, record in records.items()}


def name_records(paths: list[str], taken: Iterable[str]) -> dict[str, str]:
    """A key for every path, in their order: its file name where that is unique, else more of the path, else with a digest.

    Keys differ by more than upper and lower case, since not every file system tells these apart.

    Args:
        paths: relative to the source.
        taken: keys that are given away already.
    """
    keys: dict[str, str] = {}
    used = {key.casefold() for key in taken}
    rest = paths
    for candidate in (stem_key, safe_key, _digest_key):
        wanted = {path: candidate(path) for path in rest}
        count = Counter(key.casefold() for key in wanted.values())
        chosen = {
            path: key
            for path, key in wanted.items()
            if count[key.casefold()] == 1 and key.casefold() not in used and len(key) <= LONGEST_KEY
        }
        keys |= chosen
        used.update(key.casefold() for key in chosen.values())
        rest = [path for path in rest if path not in chosen]
    assert not rest, "digests of different paths are different"
    return {path: keys[path] for path in paths}


def names_of_several(paths: Iterable[str]) -> dict[str, str]:
    """Keys of those recordings alone whose file name another one of ``paths`` has too; the name of any other one is its key."""
    keys = name_records(sorted(paths), ())
    count = Counter(stem_key(path).casefold() for path in keys)
    return {path: key for path, key in keys.items() if count[stem_key(path).casefold()] > 1}


def name_persons(records: Mapping[str, str]) -> dict[str, str]:
    """What stands for the person of each recording where no rule reads one from its path; ``records`` are their keys.

    It is the file's name, and where this name is in several folders, a key: these are different people, since a name such as
    ``psg.edf`` says nothing of anybody. Files of one folder that differ in their ending alone, such as a night exported as EDF
    and as BDF, are one person's: as two they could come into different splits.
    """
    folders: dict[str, set[PurePosixPath]] = defaultdict(set)
    for path in records:
        folders[stem_key(path)].add(PurePosixPath(path).parent)
    first: dict[tuple[PurePosixPath, str], str] = {}
    persons: dict[str, str] = {}
    for path, record in records.items():
        stem = stem_key(path)
        alone = len(folders[stem]) == 1
        persons[path] = stem if alone else first.setdefault((PurePosixPath(path).parent, stem), record)
    return persons


def common_folders(paths: Iterable[Sequence[str]]) -> int:
    """How many folders all of ``paths``, in their parts, begin with; the last part is the file's name."""
    levels = zip(*(parts[:-1] for parts in paths), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


def stem_key(path: str) -> str:
    """The key that the file's name alone gives."""
    return safe_key(PurePosixPath(path).stem)


def safe_key(text: str) -> str:
    """``text`` in characters that file names and archive members can hold; WebDataset ends a sample's key at the first dot."""
    return _UNSAFE.sub("-", text).strip("-") or "record"


def _digest_key(path: str) -> str:
    return f"{stem_key(path)[: LONGEST_KEY - 17]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
