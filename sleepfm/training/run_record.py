"""``run.json``: what a run is, and what it says of itself while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sleepfm.data.identity import DataDigest
from sleepfm.errors import StorageError
from sleepfm.files import read_json, write_json
from sleepfm.training.run_config import present_names

# The keys of a record, and those that it has had only since a later version.
_KEYS = {"settings": dict, "dataset_digest": str, "sources": dict}
_LATER_KEYS = {"mixture": dict, "segments": list, "saved": int, "best": dict, "lost": list}
# What earlier versions called the settings: read in the records of their runs, never written.
_FORMER_SETTINGS = "essence"
# Checkpoints are recorded by the thread that writes them.
_CHANGING = threading.Lock()


def read(path: Path) -> dict[str, Any] | None:
    """What the record in ``path`` says, with its segments; None where no run has begun.

    Raises:
        StorageError: the file is not the record of a run.
    """
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = "no record"
    if known is None:
        return None
    if isinstance(known, dict) and _FORMER_SETTINGS in known:
        known["settings"] = known.pop(_FORMER_SETTINGS)
    if (
        not isinstance(known, dict)
        or any(not isinstance(known.get(key), kind) for key, kind in _KEYS.items())
        or any(not isinstance(known[key], kind) for key, kind in _LATER_KEYS.items() if key in known)
    ):
        raise StorageError(f"{path}: is not the record of a run; give another train.output=, or move it away")
    known["settings"] = present_names(known["settings"])
    return known | {"segments": known.get("segments", [])}


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let ``edit`` change what the record of a run that has begun says. Raises :class:`StorageError`."""
    with _CHANGING:
        known = read(path)
        assert known is not None
        edit(known)
        write_json(path, known)


def present(known: dict[str, Any]) -> dict[str, Any]:
    """The settings of the present segment of a record."""
    settings: dict[str, Any] = known["segments"][-1]["settings"] if known["segments"] else known["settings"]
    return present_names(settings)


def data_history(known: dict[str, Any]) -> list[tuple[int, DataDigest]]:
    """The data that the run of a record learns from, by the step from which on it does; the present one last."""
    later = [(item["step"], DataDigest.from_record(item)) for item in known["segments"] if "dataset_digest" in item]
    return [(0, DataDigest.from_record(known)), *later]
