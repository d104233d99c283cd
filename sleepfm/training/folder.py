"""The folder of a run: what was started in it, whether that may continue, and whether it is done.

``run.json`` holds what decides the result (:func:`sleepfm.training.config.essence`), the data set digest and
the registered versions that the run started from; ``result.json`` is written last, when all is done.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from sleepfm.config import to_yaml
from sleepfm.errors import CheckpointError, ConfigError, StorageError
from sleepfm.files import read_json, remove_temporaries, temporaries, write_atomic, write_json
from sleepfm.output import (
    not_matching,
    remove_matching,
    remove_unfinished,
    remove_written,
    strangers,
    unfinished_folders,
)
from sleepfm.package import WEIGHTS
from sleepfm.training import checkpoint
from sleepfm.training.config import RunConfig, differing_keys, essence
from sleepfm.training.export import LAST, PACKAGE, STAGED_FILES, STAGING
from sleepfm.training.tracking import JOURNAL
from sleepfm.training.tracking import STATE as TRACKING_STATE

Resume = Literal["auto", "never", "must"]

RECORD = "run.json"
_CHECKPOINTS, _BEST = "checkpoints", "best"
# What a downstream stage says of its best weights comes last.
_FILES = (
    *("result.json", "config.yaml", "trace.jsonl", "environment.json", TRACKING_STATE, JOURNAL),
    *("evaluation.json", "predictions-val.parquet", "predictions-test.parquet"),
)
_TEMPORARY = "|".join(map(re.escape, (RECORD, *_FILES)))
_BEST_FILES = rf"{re.escape(WEIGHTS)}|\.{re.escape(WEIGHTS)}\.[0-9a-f]{{12}}\.tmp"


def check(config: RunConfig, dataset_digest: str, resume: Resume) -> dict[str, Any] | None:
    """The result of this very run if it is already done, else None. Reads only; every rank may call it.

    Raises:
        ConfigError: the folder holds a run of another configuration or data set.
        CheckpointError: ``must`` and nothing to resume.
        StorageError: what a run writes is there already, and no run of this program has written it.
    """
    folder = Path(config.train.output)
    known = _record(folder)
    if known is None:
        if resume == "must":
            raise CheckpointError(f"{folder}: holds no run to resume; start it without --resume must")
        _check_free(folder)
        return None
    if resume == "never":
        return None
    differences = differing_keys(known["essence"], essence(config))
    if known["dataset_digest"] != dataset_digest:
        differences.append(f"data set digest ({known['dataset_digest'][:12]} -> {dataset_digest[:12]})")
    if differences:
        raise ConfigError(
            f"{folder}: holds a run of another configuration: {', '.join(differences)}; "
            "give another train.output=, or --resume never to start over"
        )
    if resume == "must" and not (folder / "checkpoints" / "latest").exists():
        raise CheckpointError(f"{folder}: holds no checkpoint to resume; start it without --resume must")
    return read_json(folder / "result.json")


def sources(config: RunConfig) -> dict[str, str]:
    """The registered versions that a run in this folder started from, by the address that it was given."""
    known = _record(Path(config.train.output))
    return known["sources"] if known else {}


def clear(config: RunConfig) -> None:
    """Remove what an earlier run left in the folder, and nothing else.

    Raises:
        StorageError: a file that no run has written is in a folder that would be removed; nothing has been removed then.
    """
    folder = Path(config.train.output)
    if _record(folder) is None:
        _check_free(folder)
        return
    root, best = folder / _CHECKPOINTS, folder / _BEST
    staged = _staged(folder)
    others = [*checkpoint.strangers(root), *not_matching(best, _BEST_FILES)]
    for name in (PACKAGE, LAST):
        others += strangers(folder / name)
    for path in staged:
        others += not_matching(path, STAGED_FILES)
    if others:
        raise StorageError(
            f"{others[0]}: was not written by a run, or has been changed since ({len(others)} in {folder}); move it to another "
            "place before this run's files are removed, or give another train.output="
        )
    checkpoint.remove_all(root)
    remove_matching(best, _BEST_FILES)
    for name in (PACKAGE, LAST):
        remove_written(folder / name)
    for path in staged:
        remove_matching(path, STAGED_FILES)
    _remove_debris(folder)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    # Last: what a kill leaves is still a run's.
    (folder / RECORD).unlink()


def begin(config: RunConfig, dataset_digest: str, started_from: dict[str, str]) -> None:
    """Record what runs here, once; a resumed run finds its record and leaves it."""
    folder = Path(config.train.output)
    if (folder / RECORD).exists():
        _remove_debris(folder)
    else:
        # First: from here on the folder is a run's.
        record = {"essence": essence(config), "dataset_digest": dataset_digest, "sources": started_from}
        write_json(folder / RECORD, record)
    write_atomic(folder / "config.yaml", to_yaml(config))


def _record(folder: Path) -> dict[str, Any] | None:
    """What runs in ``folder``, or None where nothing does. Raises :class:`StorageError` for somebody else's file."""
    try:
        known = read_json(folder / RECORD)
    except (OSError, ValueError):
        known = "no record"
    if known is not None and not (isinstance(known, dict) and {"essence", "dataset_digest", "sources"} <= known.keys()):
        raise StorageError(f"{folder / RECORD}: is not the record of a run; give another train.output=, or move it away")
    return known


def _check_free(folder: Path) -> None:
    """Nothing that a run would write is there. Raises :class:`StorageError`."""
    if folder.is_dir():
        taken = [name for name in (*_FILES, _CHECKPOINTS, _BEST, PACKAGE, LAST) if os.path.lexists(folder / name)]
        taken += [path.name for path in (*_staged(folder), *temporaries(folder, _TEMPORARY), *_unfinished(folder))]
        if taken:
            raise StorageError(
                f"{folder}: holds {', '.join(taken)}, which no run of this program has written; give another train.output=, or "
                "move them away"
            )


def _unfinished(folder: Path) -> list[Path]:
    return [*unfinished_folders(folder, PACKAGE), *unfinished_folders(folder, LAST)]


def _staged(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if STAGING.fullmatch(path.name))


def _remove_debris(folder: Path) -> None:
    """What a kill leaves of files and packages that were being written: of no use to anybody."""
    remove_temporaries(folder, _TEMPORARY)
    remove_temporaries(folder / _BEST, re.escape(WEIGHTS))
    remove_temporaries(folder / _CHECKPOINTS, "latest")
    for path in _unfinished(folder):
        remove_unfinished(path)
