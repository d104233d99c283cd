"""The MLflow registry that holds the trained models.

A registered version's tags hold the digests of its package's files, the digests of data and configuration,
the git commit, the parent versions and the metrics; a changed byte is refused on load.

Addresses: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the folder of a package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm.errors import RegistryError
from sleepfm.registry.artifacts import beside, upload
from sleepfm.registry.package import build_module, read_config, verify
from sleepfm.registry.pruning import AUTOMATIC, is_untouched, mark
from sleepfm.registry.store import NOT_THERE, answering, client, pages, reason_of, store_uri, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient
    from torch import nn


_LABEL = re.compile(r"(?P<name>[^/:@]+):(?P<version>\d+)")
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")


@dataclass(frozen=True)
class Resolved:
    """Where an address leads: a package folder and, if registered, what the registry says of it."""

    uri: str
    path: Path
    name: str = ""
    version: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``name:version``, as lineage tags write it; the folder for an unregistered package."""
        return f"{self.name}:{self.version}" if self.name else str(self.path)


@dataclass(frozen=True)
class Package:
    """A loaded package: the module in eval mode, its ``config.yaml``, and where it came from."""

    module: nn.Module
    config: dict[str, Any]
    source: Resolved


def resolve(uri: str | Path, store: str | None = None) -> Resolved:
    """The package that ``uri`` names, fetched into a local folder if the store is remote.

    Raises:
        RegistryError: not an address, or nothing registered under it, where the message lists what is; or no answer.
    """
    text = str(uri)
    if not text.startswith("models:"):
        folder = Path(text)
        if not text or not folder.is_dir():
            raise RegistryError(
                f"{text or 'an empty address'}: no such folder, and not models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        return Resolved(text, folder)
    with answering(store):
        version = version_at(text, client(store))
        path = _folder_of(client(store), version, store_uri(store))
    return Resolved(f"models:/{version.name}/{version.version}", path, version.name, str(version.version), dict(version.tags))


def find(address: str, store: str | None = None) -> ModelVersion:
    """The version that a ``models:`` address names, without its files.

    Raises:
        RegistryError: as :func:`resolve`.
    """
    with answering(store):
        return version_at(address, client(store))


def version_at(address: str, mlflow_client: MlflowClient) -> ModelVersion:
    """The version that ``address`` names, without its files."""
    from mlflow.exceptions import MlflowException

    match = _ADDRESS.match(address)
    if match is None:
        raise RegistryError(f"{address}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match["name"], match["alias"], match["version"]
    try:
        if alias:
            return mlflow_client.get_model_version_by_alias(name, alias)
        return mlflow_client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        wanted = f"alias {alias!r}" if alias else f"version {number}"
        raise RegistryError(f"{address}: no {wanted} of {name!r}; {_holdings(mlflow_client, name)}") from error


def load_package(source: str | Path | Resolved, store: str | None = None) -> Package:
    """Load a package with every digest checked. Raises :class:`RegistryError` and :class:`ModelError`."""
    from sleepfm.models.build import build_model

    found = source if isinstance(source, Resolved) else resolve(source, store)
    config = verify(found.path, found.label, found.tags if found.name else None)
    return Package(build_module(found.path, config, build_model), config, found)


def load(uri: str | Path, store: str | None = None) -> nn.Module:
    """The module at ``uri`` in eval mode; ``usage`` of a downstream one says how it is used.

    Raises:
        RegistryError: nothing registered there, or bytes that have changed.
        ModelError: weights or a usage that do not fit the model.
    """
    return load_package(uri, store).module


def register(
    name: str,
    folder: str | Path,
    run_id: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    parents: Sequence[str] = (),
    store: str | None = None,
    automatic: bool = False,
) -> str:
    """Register the package in ``folder`` as a new version of ``name`` under ``run_id``; returns the
    version.

    The same package of the same run is registered once, however often this is called; figures and tags that it did not have are
    added. ``automatic`` says that no person asked for this version, so that :func:`sleepfm.registry.pruning.prune` may remove it.

    Raises:
        RegistryError: the store refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    mlflow_client = client(store, create=True)
    every_tag = dict(tags) | {"parents": json.dumps(list(parents))}
    every_tag |= {f"metric.{key}": repr(float(value)) for key, value in metrics.items()}
    with answering(store):
        try:
            mlflow_client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in versions_of(mlflow_client, name):
            if version.run_id == run_id and all(
                version.tags.get(key) == every_tag.get(key) for key in ("sha256", "sha256.config")
            ):
                new = {key: every_tag[key] for key in every_tag.keys() - version.tags.keys()}
                if is_untouched(version.tags):
                    new[AUTOMATIC] = mark(dict(version.tags) | new)[AUTOMATIC]
                for key, value in new.items():
                    mlflow_client.set_model_version_tag(name, str(version.version), key, value)
                return str(version.version)
        # By both files: packages of the same weights that say different things of them are both whole.
        artifacts = f"package-{every_tag['sha256'][:12]}-{every_tag['sha256.config'][:12]}"
        upload(mlflow_client, run_id, Path(folder), artifacts)
        source = f"{mlflow_client.get_run(run_id).info.artifact_uri}/{artifacts}"
        every_tag["artifacts"] = artifacts
        if automatic:
            every_tag = mark(every_tag)
        created = mlflow_client.create_model_version(name, source=source, run_id=run_id, tags=every_tag)
    return str(created.version)


def name_version(name: str, version: str, alias: str, store: str | None = None) -> None:
    """Have ``alias`` of ``name`` mean ``version``, whatever it meant before.

    Raises:
        RegistryError: the store refuses or cannot be reached.
    """
    with answering(store):
        client(store).set_registered_model_alias(name, alias, version)


def versions(store: str | None = None) -> list[ModelVersion]:
    """Every registered version, by name and number, with its ``aliases`` filled in.

    Raises:
        RegistryError: there is no store, or no answer.
    """
    mlflow_client = client(store)
    found: list[ModelVersion] = []
    with answering(store):
        models = pages(lambda token: mlflow_client.search_registered_models(page_token=token))
        for name in sorted(model.name for model in models):
            aliases: dict[str, list[str]] = {}
            for alias, number in mlflow_client.get_registered_model(name).aliases.items():
                aliases.setdefault(str(number), []).append(alias)
            for version in versions_of(mlflow_client, name):
                version._aliases = sorted(aliases.get(str(version.version), []))
                found.append(version)
    return found


def lineage(name: str, version: str, store: str | None = None) -> dict[str, Any]:
    """What a version was made from: its tags and, recursively, its parents. No artifact is fetched.

    A parent that is a folder has no version, and as tags what its package says of itself, as far as it is still there; nothing is
    known of a parent that the registry does not hold any more.

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

    match = _LABEL.fullmatch(label)
    if match is None:
        return _unregistered(label, mlflow_client)
    try:
        return _ancestry(mlflow_client.get_model_version(match["name"], match["version"]), mlflow_client)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return {"name": match["name"], "version": match["version"], "tags": {}, "parents": []}


def _unregistered(folder: str, mlflow_client: MlflowClient) -> dict[str, Any]:
    """The ancestry of a package in a folder, by its own ``config.yaml``."""
    tags: dict[str, str] = {}
    parents: list[str] = []
    try:
        content = read_config(Path(folder))
    except RegistryError:
        pass
    else:
        training = content.get("training") or {}
        tags["sha256"] = str(content["weights"]["sha256"])
        if training.get("dataset_digest"):
            tags["dataset_digest"] = str(training["dataset_digest"])
        parents = [str(label) for label in training.get("parents", [])]
    return {"name": folder, "version": "", "tags": tags, "parents": [_parent(label, mlflow_client) for label in parents]}


def _folder_of(mlflow_client: MlflowClient, version: ModelVersion, uri: str) -> Path:
    artifacts = version.tags.get("artifacts")
    if artifacts and version.run_id and (found := beside(uri, version.run_id) / artifacts).is_dir():
        return found
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=version.source, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"models:/{version.name}/{version.version}: cannot fetch {version.source} ({reason_of(error)})"
        ) from error


def _holdings(mlflow_client: MlflowClient, name: str) -> str:
    models = pages(lambda token: mlflow_client.search_registered_models(page_token=token))
    registered = sorted(model.name for model in models)
    if name not in registered:
        return f"registered models: {', '.join(registered) or 'none'}"
    model = mlflow_client.get_registered_model(name)
    numbers = [int(version.version) for version in versions_of(mlflow_client, name)]
    aliases = ", ".join(f"{alias} -> {number}" for alias, number in sorted(model.aliases.items()))
    return f"it has version {', '.join(map(str, numbers)) or 'none'} and alias {aliases or 'none'}"
