"""A registry that holds untrained models of all tasks, for the tests of what MLflow and `sleepfm` make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sleepfm.files import sha256_file
from sleepfm.registry import registry
from sleepfm.registry.package import CONFIG, WEIGHTS
from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.store import client, experiment_id

DIGEST = "d" * 64


def register_champion(store: str, name: str, package: Path, metrics: Mapping[str, float], parents: tuple[str, ...] = ()) -> str:
    """Register ``package`` as a job does, and make it the champion of ``name``; the version."""
    mlflow_client = client(store, create=True)
    run = mlflow_client.create_run(experiment_id(mlflow_client, store, "test"))
    tags = {"sha256": sha256_file(package / WEIGHTS), "sha256.config": sha256_file(package / CONFIG), "dataset_digest": DIGEST}
    version = registry.register(name, package, run.info.run_id, tags, metrics, parents, store)
    registry.name_version(name, version, CHAMPION, store)
    return version
