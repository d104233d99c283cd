"""What a registered model is given through MLflow: paths of recordings, or their bytes; checked before anything is read.

A server reads for whoever can reach it, so it takes paths below one folder alone: its working folder, or
``SLEEPFM_SERVE_FOLDER``. In a process of the caller's own every path and URL that the caller can read is fine.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm.data.cache import bytes_from_environment
from sleepfm.errors import UsageError
from sleepfm.registry.mlflow_model import COHORT, EDF, NAME, RECORDING
from sleepfm.signals.cohorts.catalogue import AUTO, cohort_names

if TYPE_CHECKING:
    import pandas as pd

FOLDER_VARIABLE, LIMIT_VARIABLE, NIGHTS_VARIABLE = "SLEEPFM_SERVE_FOLDER", "SLEEPFM_SERVE_GIB", "SLEEPFM_SERVE_NIGHTS"
# A night of 12 h with 20 signals at 256 Hz takes 0.4 GiB.
DEFAULT_GIB = 1.0
DEFAULT_NIGHTS = 64
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
# Set by `mlflow.pyfunc.scoring_server` before the first request.
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


def served() -> bool:
    """Whether this process answers requests of others."""
    return os.environ.get(_SERVING, "").lower() in ("true", "1")


def chosen_cohort(params: dict[str, Any] | None) -> str:
    """The rules of channels that the caller names; a server takes names, no files.

    Raises:
        UsageError: a server is given something else than the name of a cohort.
    """
    cohort = str((params or {}).get(COHORT) or AUTO)
    if served() and cohort != AUTO and cohort not in cohort_names():
        raise UsageError(f"{COHORT} {cohort!r}: a server knows {', '.join([AUTO, *cohort_names()])}")
    return cohort


@contextmanager
def recordings(rows: pd.DataFrame) -> Iterator[list[str]]:
    """The recordings that the rows of the input name, as paths or URLs; those that came as bytes lie in a folder meanwhile.

    Raises:
        UsageError: no recording, too many or too large ones, or a path that a server does not read.
    """
    limit = bytes_from_environment(LIMIT_VARIABLE, DEFAULT_GIB)
    most = _nights()
    if not len(rows) or not {RECORDING, EDF} & set(rows.columns):
        raise UsageError(f"no recording: give a column {RECORDING!r} of paths, or {EDF!r} of bytes (base64 in JSON)")
    if len(rows) > most:
        raise UsageError(
            f"{len(rows)} recordings, but at most {most} fit in one request; send several requests, or set {NIGHTS_VARIABLE}"
        )
    given = [_of_row(number, row) for number, row in enumerate(rows.to_dict("records"), 1)]
    size = sum(len(item) for item, _ in given if isinstance(item, bytes))
    if size > limit:
        raise UsageError(
            f"{size / 2**20:.1f} MiB of recordings, and {limit / 2**20:.1f} MiB fit in one request; send fewer, or set "
            f"{LIMIT_VARIABLE}"
        )
    with tempfile.TemporaryDirectory(prefix="sleepfm-") as folder:
        yield [_placed(item, name, Path(folder) / str(number)) for number, (item, name) in enumerate(given)]


def _nights() -> int:
    text = os.environ.get(NIGHTS_VARIABLE, str(DEFAULT_NIGHTS))
    if not text.isdigit() or not int(text):
        raise UsageError(f"{NIGHTS_VARIABLE}={text}: expected a number of recordings")
    return int(text)


def _of_row(number: int, row: dict[Any, Any]) -> tuple[str | bytes, str]:
    """The path or the bytes of a row, and the file's name."""
    path, content, name = (row.get(column) for column in (RECORDING, EDF, NAME))
    has_path, has_content = isinstance(path, str) and bool(path), isinstance(content, bytes) and bool(content)
    if has_path == has_content:
        raise UsageError(f"row {number}: give either {RECORDING!r}, a path, or {EDF!r}, the bytes of a file")
    if has_path:
        return _allowed(str(path)), ""
    name = name if isinstance(name, str) and name else "recording.edf"
    if not _NAME.fullmatch(name):
        raise UsageError(f"row {number}: {NAME} {name[:100]!r}: expected a file's name of letters, digits, '.', '_' and '-'")
    return _decoded(bytes(content or b"")), name


def _decoded(content: bytes) -> bytes:
    """The bytes of a file that may still be base64: MLflow decodes that of ``dataframe_records``, and not that of ``inputs``.

    No EDF or BDF file is base64, which knows no blanks and no byte above 127.
    """
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        return content


def _allowed(path: str) -> str:
    """``path``, if this process may read it. Raises :class:`UsageError`."""
    if not served():
        return path
    root = Path(os.environ.get(FOLDER_VARIABLE) or ".").resolve()
    # Links are followed first: one that leads out of the folder is refused like the path that it stands for.
    found = (root / path).resolve()
    if "://" in path or not found.is_relative_to(root):
        raise UsageError(
            f"{path}: this server only reads recordings below its folder; send the bytes as {EDF!r}, or have it started with "
            f"{FOLDER_VARIABLE} set to a folder that holds it"
        )
    return str(found)


def _placed(item: str | bytes, name: str, folder: Path) -> str:
    if isinstance(item, str):
        return item
    folder.mkdir()
    (folder / name).write_bytes(item)
    return str(folder / name)
