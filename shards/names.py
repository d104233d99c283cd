"""File names as what they are: bytes that somebody else chose.

Records get keys that are safe as names of files and archive members on every system; what is shown to people keeps
to one line of printable text.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

# USTAR holds 100 characters; what follows the record's key in a member's name takes up to 25.
LONGEST_KEY = 70
KEY = re.compile(rf"[0-9A-Za-z_-]{{1,{LONGEST_KEY}}}")


def shown(text: str) -> str:
    """``text`` as one line of printable text; line ends, control characters and bytes that are no UTF-8 are escaped.

    The last come from the system as lone surrogates, which neither a terminal nor Parquet takes.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def name_records(paths: list[str], taken: Iterable[str]) -> dict[str, str]:
    """A key for every path: its file name where that is unique, else more of the path, else with a digest.

    Keys differ by more than upper and lower case, since not every file system tells these apart.

    Args:
        paths: relative to the source.
        taken: keys that are given away already.
    """
    keys: dict[str, str] = {}
    used = {key.casefold() for key in taken}
    rest = paths
    for candidate in (_stem_key, _path_key, _digest_key):
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
    return keys


def _stem_key(path: str) -> str:
    return _safe(PurePosixPath(path).stem)


def _path_key(path: str) -> str:
    return _safe(path)


def _digest_key(path: str) -> str:
    return f"{_stem_key(path)[: LONGEST_KEY - 17]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"


def _safe(text: str) -> str:
    """``text`` in characters that member names can hold; WebDataset ends a sample's key at the first dot."""
    return re.sub(r"[^0-9A-Za-z_-]+", "-", text).strip("-") or "record"
