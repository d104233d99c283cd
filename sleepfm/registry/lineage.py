"""What a registered version was made from, back to the first parents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm import builtin
from sleepfm.data.identity import DataDigest
from sleepfm.errors import RegistryError
from sleepfm.registry.package import read_config
from sleepfm.registry.registry import version_at
from sleepfm.registry.store import NOT_THERE, answering, client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

_LABEL = re.compile(r"(?P<name>[^/:@]+):(?P<version>\d+)")


def lineage(name: str, version: str, store: str | None = None) -> dict[str, Any]:
    """What a version was made from: its tags and, recursively, its parents. No artifact is fetched.

    A parent that is a folder has no version, and as tags what its package says of itself, as far as it is still there; nothing is
    known of a parent that the registry does not hold any more. A built-in model has the version that trained it, its digest, and
    the data set that it is from while this installation has it. Its own parents are of another registry, and are not told.

    Raises:
        RegistryError: no such version, or no answer.
    """
    mlflow_client = client(store)
    with answering(store):
        return _ancestry(version_at(f"models:/{name}/{version}", mlflow_client), mlflow_client)


def _ancestry(version: ModelVersion, mlflow_client: MlflowClient) -> dict[str, Any]:
    tags = dict(version.tags)
    parents = [_parent(label, mlflow_client) for label in json.loads(tags.get("parents", "[]"))]
    return {"name": version.name, "version": str(version.version), "tags": tags, "parents": parents}


def _parent(label: str, mlflow_client: MlflowClient) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    if builtin.is_address(label):
        return _of_installation(label)
    match = _LABEL.fullmatch(label)
    if match is None:
        return _unregistered(label, mlflow_client)
    try:
        return _ancestry(mlflow_client.get_model_version(match["name"], match["version"]), mlflow_client)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return {"name": match["name"], "version": match["version"], "tags": {}, "parents": []}


def _of_installation(label: str) -> dict[str, Any]:
    """The ancestry of a built-in model; ``label`` is as :func:`sleepfm.builtin.pinned` writes it."""
    address, version, digest = builtin.unpinned(label)
    tags = {"sha256": digest} if digest else {}
    try:
        content = read_config(builtin.package(label))
    except RegistryError:
        pass
    else:
        if content["weights"]["sha256"] == digest:
            tags |= _tags_of_data(content)
    return {"name": address, "version": version, "tags": tags, "parents": []}


def _tags_of_data(content: Mapping[str, Any]) -> dict[str, str]:
    """What the ``config.yaml`` of a package says of its data set, under the keys of a registered version."""
    training = content.get("training") or {}
    digest = training.get("dataset_digest")
    return {"dataset_digest": str(digest)} | DataDigest.from_record(training).tags() if digest else {}


def _unregistered(folder: str, mlflow_client: MlflowClient) -> dict[str, Any]:
    """The ancestry of a package in a folder, by its own ``config.yaml``."""
    tags: dict[str, str] = {}
    parents: list[str] = []
    try:
        content = read_config(Path(folder))
    except RegistryError:
        pass
    else:
        tags = {"sha256": str(content["weights"]["sha256"])} | _tags_of_data(content)
        parents = [str(label) for label in (content.get("training") or {}).get("parents", [])]
    return {"name": folder, "version": "", "tags": tags, "parents": [_parent(label, mlflow_client) for label in parents]}
