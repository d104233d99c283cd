"""A node's copies of registered packages, shared by all processes of the node.

They lie in ``models`` of the cache folder (``$SLEEPFM_CACHE``), each under the digests of its weights and its configuration. A
package is fetched once, under another name, and gets its own when its digests are right. Whoever wants it meanwhile waits. One
that is not as it was registered any more is fetched again.

A fetch removes the packages that were asked for longest ago as long as all of them take more than ``$SLEEPFM_CACHE_MODELS_GIB``
(16), but none that was asked for within a day: a job may be about to read it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from sleepfm.data.cache import FOLDER_VARIABLE, bytes_from_environment, cache_folder
from sleepfm.errors import RegistryError
from sleepfm.files import sync_file, sync_folder
from sleepfm.lock import LOCK_FILE, locked
from sleepfm.registry.package import verify

FOLDER = "models"
# Digits of the digest of its weights with which the name of a package begins.
DIGITS = 24
MARKER = ".sleepfm-models"
LIMIT_VARIABLE = "SLEEPFM_CACHE_MODELS_GIB"
DEFAULT_GIB = 16.0
KEPT_SECONDS = 24 * 3600.0
# Shorter than collectives, in which the other ranks of a job wait.
_PATIENCE_SECONDS = 1500.0
_PART = ".part"
_PACKAGE = re.compile(r"[0-9a-f]{24}-[0-9a-f]{8}")

log = logging.getLogger(__name__)


def cached_package(label: str, tags: Mapping[str, str], download: Callable[[Path], Path]) -> Path:
    """The folder of the package ``label``, whose registered version has ``tags``.

    ``download`` is called where the cache does not hold it: it writes the package somewhere below the empty folder that it is
    given, and returns where.

    Raises:
        RegistryError: the version has no digests, what was fetched has others, or the cache cannot be written to.
        BusyError: another process has been fetching for too long.
        SleepFMError: whatever ``download`` raises; it should not be an ``OSError``.
    """
    limit = bytes_from_environment(LIMIT_VARIABLE, DEFAULT_GIB)
    name = f"{tags.get('sha256', '')[:DIGITS]}-{tags.get('sha256.config', '')[:8]}"
    if not _PACKAGE.fullmatch(name):
        raise RegistryError(f"{label}: registered without digests of its files; name a version that this program registered")
    folder = cache_folder() / FOLDER
    path = folder / name
    if _holds(path, label, tags):
        return path
    try:
        _claim(folder)
        with locked(folder / LOCK_FILE, _PATIENCE_SECONDS):
            if not _holds(path, label, tags):
                _fetch(path, label, tags, download)
                _make_room(folder, limit, path)
    except OSError as error:
        raise RegistryError(
            f"{path}: cannot keep {label} here ({error.strerror or error}); make room, or set {FOLDER_VARIABLE}"
        ) from error
    return path


def _holds(path: Path, label: str, tags: Mapping[str, str]) -> bool:
    """Is the package there with the right digests; if so, it counts as just asked for."""
    if not path.is_dir():
        return False
    try:
        verify(path, label, tags)
    except RegistryError as error:
        log.warning("%s; fetched again", error)
        return False
    with suppress(OSError):
        # A cache that was filled by somebody else, and is only read.
        os.utime(path)
    return True


def _claim(folder: Path) -> None:
    """Make ``folder``, and mark it as the cache's own. Raises :class:`RegistryError` for somebody else's."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    # In this order: another process may be making it.
    if not marker.is_file() and any(folder.iterdir()) and not marker.is_file():
        raise RegistryError(
            f"{folder}: contains files that this cache did not write; move the folder away, or set {FOLDER_VARIABLE}"
        )
    marker.touch()


def _fetch(path: Path, label: str, tags: Mapping[str, str], download: Callable[[Path], Path]) -> None:
    """Download the package to ``path``, alone: the caller has locked the cache."""
    for part in _own(path.parent, _PART):
        # What a killed process left.
        shutil.rmtree(part)
    if path.is_dir():
        _remove(path)
    part = path.with_name(path.name + _PART)
    part.mkdir()
    try:
        found = download(part)
        verify(found, label, tags)
        # The name must not appear before the bytes do, also after a power cut.
        for file in found.iterdir():
            sync_file(file)
        found.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_room(folder: Path, limit: int, kept: Path) -> None:
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in _own(folder)}
    used = sum(sizes.values())
    for asked, path in sorted((path.stat().st_mtime, path) for path in sizes):
        if used <= limit or time.time() - asked < KEPT_SECONDS:
            return
        if path != kept:
            _remove(path)
            used -= sizes[path]


def _own(folder: Path, suffix: str = "") -> list[Path]:
    """The folders in the cache that it has made, packages or parts of them."""
    names = re.compile(_PACKAGE.pattern + re.escape(suffix))
    return [path for path in folder.iterdir() if names.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _remove(path: Path) -> None:
    """Remove a package, which nobody finds under its name from the first moment on."""
    part = path.with_name(path.name + _PART)
    path.rename(part)
    shutil.rmtree(part)
