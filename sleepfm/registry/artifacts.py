"""Files of packages on their way to the store and out of it: uploads with the time that their size takes, and removals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm.registry.store import answering, client, sqlite_file, store_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_LEAST_SECONDS = 60.0
# A server that hands a file on to an object store answers only when it has, and one this slow is still working.
_SLOWEST_BYTES_PER_SECOND = 4e6


def seconds_for(size: float) -> float:
    """How long ``size`` bytes may take over a slow network, or to a slow disk."""
    return _LEAST_SECONDS + size / _SLOWEST_BYTES_PER_SECOND


def upload(mlflow_client: MlflowClient, run_id: str, folder: Path, name: str) -> None:
    """Put the files of ``folder`` under ``name`` among the artifacts of a run.

    MLflow streams a file from the disk, in parts and straight to the object store where its server offers that. It waits for each
    answer as long as ``MLFLOW_HTTP_REQUEST_TIMEOUT`` says, or as the largest file may take at 4 MB/s, whichever is longer: a
    package of 1.2 GB gets five minutes.

    Raises:
        MlflowException, OSError: it could not be put there.
    """
    largest = max((file.stat().st_size for file in folder.iterdir()), default=0)
    with _patience(seconds_for(largest)):
        mlflow_client.log_artifacts(run_id, str(folder), name)


def attach(file: Path, run_id: str, store: str | None = None) -> None:
    """Put ``file`` among the artifacts of a run in ``store``, in the place of one that is called so.

    Raises:
        RegistryError: the store refuses or cannot be reached.
    """
    mlflow_client = client(store)
    with answering(store), _patience(seconds_for(file.stat().st_size)):
        mlflow_client.log_artifact(run_id, str(file))


def remove(mlflow_client: MlflowClient, run_id: str, name: str, store: str | None = None) -> None:
    """Remove ``name`` from the artifacts of a run in ``store``; nothing happens where it is gone already.

    Raises:
        MlflowException, OSError: it could not be removed.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} is no folder directly below the artifacts of run {run_id}")
    uri = store_uri(store)
    # Of a store that was copied the original's files stay.
    root = beside(uri, run_id) if (beside(uri, run_id) / name).is_dir() else mlflow_client.get_run(run_id).info.artifact_uri
    get_artifact_repository(str(root), tracking_uri=uri).delete_artifacts(name)


def beside(uri: str, run_id: str) -> Path:
    """Where artifacts of a run are beside the file of a SQLite store: also after its folder was moved, unknown to MLflow."""
    file = sqlite_file(uri)
    return file.parent.resolve() / "mlartifacts" / run_id / "artifacts" if file is not None else Path(os.devnull)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """MLflow's time-out, which it reads from the environment at every request, at least ``seconds``."""
    before = os.environ.get(_TIMEOUT)
    try:
        stated = float(before or 0)
    except ValueError:
        # MLflow says what is wrong with it.
        stated = seconds
    if stated < seconds:
        os.environ[_TIMEOUT] = str(round(seconds))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_TIMEOUT, None)
        else:
            os.environ[_TIMEOUT] = before
