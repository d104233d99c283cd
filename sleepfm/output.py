"""Folders that are written whole, told from what others wrote: nothing of theirs is ever replaced or removed.

Such a folder holds ``.sleepfm.json``, which says what it is, what it was made from, by which version, and lists its files with
their SHA-256. It is replaced only by the same thing made from the same input, and only while everything in it is as it was
written. Anything else is refused by name.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm.errors import StorageError
from sleepfm.files import make_folder, read_json, sha256_file, sync_file, sync_folder, write_json, writing
from sleepfm.version import __version__

MARKER = ".sleepfm.json"


@dataclass(frozen=True)
class Origin:
    """What a folder holds and what it was made from.

    Attributes:
        kind: what it is, such as ``scored night``.
        source: equal for equal input alone, such as a digest.
        label: the input, for people.
    """

    kind: str
    source: str
    label: str


def check_free(folder: Path, origin: Origin) -> None:
    """Whether ``origin`` may be written to ``folder``: it is absent, empty, or an unchanged one of the same origin.

    Raises:
        StorageError: naming what is there, and what to do.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise StorageError(f"{folder}: exists and was not written by this program; move it away, or give another folder")
    if not any(folder.iterdir()):
        return
    marker = _read_marker(folder)
    if marker is None:
        raise StorageError(
            f"{folder}: contains files that this program did not write, so it is not replaced; move it away, or give another "
            "folder"
        )
    if (marker["kind"], marker["source"]) != (origin.kind, origin.source):
        raise StorageError(
            f"{folder}: holds the {marker['kind']} of {marker['label']}, not the {origin.kind} of {origin.label}, so it is "
            "not replaced; move it away, or give another folder"
        )
    if others := strangers(folder):
        raise StorageError(
            f"{others[0]}: was not written by this program, or has changed since ({len(others)} in {folder}); move it away: "
            "the whole folder is replaced"
        )


def holds(folder: Path, origin: Origin) -> bool:
    """Whether ``folder`` is what was made from ``origin``, perhaps changed since."""
    marker = _read_marker(folder)
    return marker is not None and (marker["kind"], marker["source"]) == (origin.kind, origin.source)


def strangers(folder: Path) -> list[Path]:
    """What is in ``folder`` and not, or no longer, what its marker lists; everything, without a marker."""
    marker = _read_marker(folder)
    listed: dict[str, str] = marker["files"] if marker else {}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}

    def is_ours(path: Path) -> bool:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return False
        if path.is_dir():
            return name in folders or any(path.iterdir())
        return (name == MARKER and marker is not None) or (name in listed and sha256_file(path) == listed[name])

    return [path for path in _everything(folder) if not is_ours(path)]


def missing(folder: Path) -> list[str]:
    """What the marker of ``folder`` lists and is not there; nothing, without a marker."""
    marker = _read_marker(folder)
    return [name for name in marker["files"] if not (folder / name).is_file()] if marker else []


def remove_written(folder: Path) -> None:
    """Remove the files that the marker of ``folder`` lists, as long as they are unchanged, and the folder if that was all."""
    if _read_marker(folder) is None:
        return
    others = set(strangers(folder))
    for path in _everything(folder):
        if path not in others and not path.is_dir():
            path.unlink(missing_ok=True)
    remove_empty(folder)


def remove_matching(folder: Path, names: str) -> None:
    """Remove the files below ``folder`` whose paths in it match ``names``, a regular expression, and the folder if that
    was all.
    """
    for path in _everything(folder):
        if re.fullmatch(names, path.relative_to(folder).as_posix()) and not path.is_symlink() and not path.is_dir():
            path.unlink(missing_ok=True)
    remove_empty(folder)


def not_matching(folder: Path, names: str) -> list[Path]:
    """Files and links below ``folder`` whose paths in it do not match ``names``, a regular expression."""
    return [
        path
        for path in _everything(folder)
        if not re.fullmatch(names, path.relative_to(folder).as_posix()) and (path.is_symlink() or not path.is_dir())
    ]


def remove_empty(folder: Path) -> None:
    """Remove ``folder`` and the folders in it that hold nothing."""
    for path in [*reversed(_everything(folder)), folder]:
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()


@contextmanager
def whole_folder(folder: Path, origin: Origin) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``folder`` only if the block ends without an error.

    Raises:
        StorageError: it cannot be written, or :func:`check_free` refuses; what was at ``folder`` is still there.
    """
    check_free(folder, origin)
    # A path such as `.` has no name of its own.
    place = Path(os.path.abspath(folder))
    make_folder(place.parent)
    name = f".{place.name}.{uuid.uuid4().hex[:12]}"
    unfinished, replaced = place.with_name(f"{name}.tmp"), place.with_name(f"{name}.old")
    try:
        with writing(folder):
            unfinished.mkdir()
            _mark(unfinished, origin, finished=False)
            yield unfinished
            _mark(unfinished, origin, finished=True)
            check_free(folder, origin)
            if place.is_dir() and any(place.iterdir()):
                place.rename(replaced)
            try:
                unfinished.rename(place)
            except OSError:
                if replaced.exists():
                    replaced.rename(place)
                raise
            sync_folder(place.parent)
    finally:
        remove_unfinished(unfinished)
        remove_unfinished(replaced)


def remove_unfinished(folder: Path) -> None:
    """Remove a folder that :func:`whole_folder` did not finish, or had set aside; anything else stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    marker = _read_marker(folder)
    if marker is not None and not marker["finished"]:
        shutil.rmtree(folder, ignore_errors=True)
    elif marker is not None:
        remove_written(folder)
    else:
        remove_empty(folder)


def unfinished_folders(parent: Path, name: str) -> list[Path]:
    """What a kill left of :func:`whole_folder` for ``parent/name``. Nobody else may be writing it meanwhile."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.(tmp|old)")
    return sorted(path for path in parent.iterdir() if pattern.fullmatch(path.name))


def _mark(folder: Path, origin: Origin, finished: bool) -> None:
    """Write the marker: before anything else is written, and again with the list of what was."""
    files = {}
    if finished:
        for path in _everything(folder):
            name = path.relative_to(folder).as_posix()
            if name != MARKER and not path.is_dir():
                sync_file(path)
                files[name] = sha256_file(path)
    content = {"kind": origin.kind, "source": origin.source, "label": origin.label, "version": __version__}
    write_json(folder / MARKER, content | {"finished": finished, "files": files})


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """The marker of ``folder``, or None where there is none that this program wrote."""
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    types = {"kind": str, "source": str, "label": str, "finished": bool, "files": dict}
    if not isinstance(marker, dict) or not all(isinstance(marker.get(key), kind) for key, kind in types.items()):
        return None
    return marker


def _everything(folder: Path) -> list[Path]:
    """All files, links and folders below ``folder``, folders before what they hold; links are not followed."""
    return sorted(Path(place) / name for place, folders, files in os.walk(folder) for name in (*folders, *files))
