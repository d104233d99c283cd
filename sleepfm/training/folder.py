"""The folder of a run: what was started in it, whether that may continue, and whether it is done.

``run.json`` holds what decides the result (:func:`sleepfm.training.config.essence`), the data set digest and
the registered versions that the run started from; ``result.json`` is written last, when all is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sleepfm.config import to_yaml
from sleepfm.errors import CheckpointError, ConfigError
from sleepfm.files import read_json, remove_temporaries, write_atomic, write_json
from sleepfm.training.config import RunConfig, differing_keys, essence
from sleepfm.training.tracking import JOURNAL
from sleepfm.training.tracking import STATE as TRACKING_STATE

Resume = Literal["auto", "never", "must"]

_OWN_FOLDERS = ("checkpoints", "best", "package", "last")
# Exports that :mod:`sleepfm.training.export` had not finished; a run that goes on takes them up, another must not.
_UNFINISHED = (".export-*", ".last")
# What a kill leaves of a package that was being written: of no use to anybody.
_DEBRIS = (".package.*", ".last.*")
_OWN_FILES = ("run.json", "result.json", "config.yaml", "trace.jsonl", "environment.json", TRACKING_STATE, JOURNAL)
# What a downstream stage says of its best weights.
_RESULTS = ("evaluation.json", "predictions-*.parquet")


def check(config: RunConfig, dataset_digest: str, resume: Resume) -> dict[str, Any] | None:
    """The result of this very run if it is already done, else None. Reads only; every rank may call it.

    Raises:
        ConfigError: the folder holds a run of another configuration or data set.
        CheckpointError: ``must`` and nothing to resume.
    """
    folder = Path(config.train.output)
    if resume == "never":
        return None
    known = read_json(folder / "run.json")
    if known is None:
        if resume == "must":
            raise CheckpointError(f"{folder}: holds no run to resume; start it without --resume must")
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
    known = read_json(Path(config.train.output) / "run.json")
    return known["sources"] if known else {}


def clear(config: RunConfig) -> None:
    """Remove what an earlier run left in the folder, and nothing else."""
    folder = Path(config.train.output)
    for pattern in (*_OWN_FILES, *_RESULTS):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    _remove_folders(folder, (*_OWN_FOLDERS, *_UNFINISHED, *_DEBRIS))


def begin(config: RunConfig, dataset_digest: str, started_from: dict[str, str]) -> None:
    """Record what runs here, once; a resumed run finds its record and leaves it."""
    folder = Path(config.train.output)
    for name in (".", *_OWN_FOLDERS):
        remove_temporaries(folder / name)
    _remove_folders(folder, _DEBRIS)
    write_atomic(folder / "config.yaml", to_yaml(config))
    if not (folder / "run.json").exists():
        record = {"essence": essence(config), "dataset_digest": dataset_digest, "sources": started_from}
        write_json(folder / "run.json", record)


def _remove_folders(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
