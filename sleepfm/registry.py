"""The MLflow registry that holds the trained models.

A registered version's tags hold the digests of its package's files, the digests of data and configuration,
the git commit, the parent versions and the metrics; a changed byte is refused on load.

Addresses: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the folder of a package.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm.errors import RegistryError
from sleepfm.package import WEIGHTS, load_weights, verify

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient
    from torch import nn

DEFAULT_STORE = "sqlite:///runs/mlflow.db"

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


def store_uri(uri: str | None = None) -> str:
    """``uri`` if stated, else ``MLFLOW_TRACKING_URI``, else the default store below the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def client(uri: str | None = None, create: bool = False) -> MlflowClient:
    """A client of the store at ``uri``.

    Raises:
        RegistryError: the store is a SQLite file that does not exist, and ``create`` is false.
    """
    uri = store_uri(uri)
    file = _sqlite_file(uri)
    if file is not None:
        # MLflow keeps open stores by address, which must not change its meaning with the working folder.
        uri = f"sqlite:///{file.resolve()}"
        if not file.exists() and not create:
            raise RegistryError(f"no registry at {file}: train a model first (make demo), or set MLFLOW_TRACKING_URI")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if file is not None and not file.exists():
        _create_store(file.resolve())
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create_store(file: Path) -> None:
    """Make an empty store at ``file`` that is there with all its tables or not at all.

    MLflow makes a file first and its tables over some seconds, so that two jobs which start together meet half of them, and a
    kill leaves half of them for good. It is made under another name; the first to be ready gives it ``file``'s.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", str(file.parent / "mlartifacts"))
        store.engine.dispose()
        try:
            os.link(temporary, file)
        except FileExistsError:
            pass
        except OSError:
            # A file system without hard links: a rename, which a job that was as fast would undo.
            temporary.replace(file)
    finally:
        for leftover in temporary.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


def experiment_id(mlflow_client: MlflowClient, uri: str, name: str) -> str:
    """The experiment ``name``, made on first use; artifacts of a SQLite store go beside it."""
    found = mlflow_client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    file = _sqlite_file(uri)
    location = str(file.parent.resolve() / "mlartifacts") if file is not None else None
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.create_experiment(name, artifact_location=location)
    except MlflowException:
        # Another job made it meanwhile.
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def resolve(uri: str | Path, store: str | None = None) -> Resolved:
    """The package that ``uri`` names, fetched into a local folder if the store is remote.

    Raises:
        RegistryError: not an address, or nothing registered under it; the message lists what is.
    """
    text = str(uri)
    if not text.startswith("models:"):
        folder = Path(text)
        if not folder.is_dir():
            raise RegistryError(f"{text}: no such folder, and not models:/NAME@ALIAS or models:/NAME/VERSION")
        return Resolved(text, folder)
    match = _ADDRESS.match(text)
    if match is None:
        raise RegistryError(f"{text}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    from mlflow.exceptions import MlflowException

    mlflow_client = client(store)
    name, alias, number = match["name"], match["alias"], match["version"]
    try:
        version = (
            mlflow_client.get_model_version_by_alias(name, alias) if alias else mlflow_client.get_model_version(name, number)
        )
    except MlflowException as error:
        wanted = f"alias {alias!r}" if alias else f"version {number}"
        raise RegistryError(f"{text}: no {wanted} of {name!r}; {_holdings(mlflow_client, name)}") from error
    return Resolved(
        f"models:/{name}/{version.version}",
        _folder_of(mlflow_client, version, store_uri(store)),
        name,
        str(version.version),
        dict(version.tags),
    )


def load_package(source: str | Path | Resolved, store: str | None = None) -> Package:
    """Load a package with every digest checked. Raises :class:`RegistryError` and :class:`ModelError`."""
    from sleepfm.models.build import build_model

    found = source if isinstance(source, Resolved) else resolve(source, store)
    config = verify(found.path, found.label, found.tags if found.name else None)
    module = build_model(config["model"])
    load_weights(module, found.path / WEIGHTS)
    return Package(module.eval(), config, found)


def load(uri: str | Path, store: str | None = None) -> nn.Module:
    """The module at ``uri`` in eval mode. Raises :class:`RegistryError` and :class:`ModelError`."""
    return load_package(uri, store).module


def register(
    name: str,
    folder: str | Path,
    run_id: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    parents: Sequence[str] = (),
    store: str | None = None,
) -> str:
    """Register the package in ``folder`` as a new version of ``name`` under ``run_id``; returns the
    version.

    The same package of the same run is registered once, however often this is called; figures and tags that it did not have are
    added.

    Raises:
        RegistryError: the store refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    mlflow_client = client(store, create=True)
    every_tag = dict(tags) | {"parents": json.dumps(list(parents))}
    every_tag |= {f"metric.{key}": repr(float(value)) for key, value in metrics.items()}
    try:
        try:
            mlflow_client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in mlflow_client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id and all(
                version.tags.get(key) == every_tag.get(key) for key in ("sha256", "sha256.config")
            ):
                for key in every_tag.keys() - version.tags.keys():
                    mlflow_client.set_model_version_tag(name, str(version.version), key, every_tag[key])
                return str(version.version)
        artifacts = f"package-{every_tag['sha256'][:12]}"
        mlflow_client.log_artifacts(run_id, str(folder), artifacts)
        source = f"{mlflow_client.get_run(run_id).info.artifact_uri}/{artifacts}"
        every_tag["artifacts"] = artifacts
        created = mlflow_client.create_model_version(name, source=source, run_id=run_id, tags=every_tag)
    except MlflowException as error:
        raise RegistryError(f"{store_uri(store)}: cannot register {name} ({str(error).splitlines()[0]})") from error
    return str(created.version)


def promote(name: str, version: str, metric: str, mode: str = "max", alias: str = "champion", store: str | None = None) -> bool:
    """Move ``alias`` of ``name`` to ``version`` if its ``metric`` is strictly better than the holder's.

    The first version with a finite metric always gets it, and so does a later package of the holder's own weights and run, which
    says more of them. Returns whether ``version`` holds the alias now.

    Raises:
        RegistryError: ``version`` has no such metric.
    """
    from mlflow.exceptions import MlflowException

    mlflow_client = client(store)
    key = f"metric.{metric}"
    offered = mlflow_client.get_model_version(name, version)
    text = offered.tags.get(key)
    if text is None:
        raise RegistryError(f"models:/{name}/{version}: no metric {metric!r}, which {alias!r} is decided by")
    value = float(text)
    if not math.isfinite(value):
        return False
    try:
        holder = mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException:
        holder = None
    if holder is not None and str(holder.version) != str(version):
        held = float(holder.tags.get(key, "nan"))
        same = (holder.run_id, holder.tags.get("sha256")) == (offered.run_id, offered.tags.get("sha256"))
        if not same and not (value > held if mode == "max" else value < held):
            return False
    mlflow_client.set_registered_model_alias(name, alias, version)
    return True


def name_version(name: str, version: str, alias: str, store: str | None = None) -> None:
    """Have ``alias`` of ``name`` mean ``version``, whatever it meant before.

    Raises:
        RegistryError: the store refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    try:
        client(store).set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise RegistryError(f"{store_uri(store)}: cannot set {name}@{alias} ({str(error).splitlines()[0]})") from error


def versions(store: str | None = None) -> list[ModelVersion]:
    """Every registered version, by name and number, with its ``aliases`` filled in.

    Raises:
        RegistryError: there is no store.
    """
    mlflow_client = client(store)
    found: list[ModelVersion] = []
    for model in sorted(mlflow_client.search_registered_models(), key=lambda m: m.name):
        aliases: dict[str, list[str]] = {}
        for alias, number in mlflow_client.get_registered_model(model.name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        listed = mlflow_client.search_model_versions(f"name = '{model.name}'")
        for version in sorted(listed, key=lambda v: int(v.version)):
            version._aliases = sorted(aliases.get(str(version.version), []))
            found.append(version)
    return found


def lineage(name: str, version: str, store: str | None = None) -> dict[str, Any]:
    """What a version was made from: its tags and, recursively, its parents.

    Raises:
        RegistryError: no such version.
    """
    source = resolve(f"models:/{name}/{version}", store)
    parents = json.loads(source.tags.get("parents", "[]"))
    return {
        "name": name,
        "version": str(version),
        "tags": source.tags,
        "parents": [lineage(*_name_and_version(parent), store) for parent in parents],
    }


def _name_and_version(label: str) -> tuple[str, str]:
    name, _, version = label.rpartition(":")
    return name, version


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _folder_of(mlflow_client: MlflowClient, version: ModelVersion, uri: str) -> Path:
    file = _sqlite_file(uri)
    artifacts = version.tags.get("artifacts")
    if file is not None and artifacts and version.run_id:
        # MLflow stores absolute paths; beside the database they are found even after the folder was moved.
        beside = file.parent / "mlartifacts" / version.run_id / "artifacts" / artifacts
        if beside.is_dir():
            return beside
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=version.source, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"models:/{version.name}/{version.version}: cannot fetch {version.source} ({str(error).splitlines()[0]})"
        ) from error


def _holdings(mlflow_client: MlflowClient, name: str) -> str:
    registered = sorted(model.name for model in mlflow_client.search_registered_models())
    if name not in registered:
        return f"registered models: {', '.join(registered) or 'none'}"
    model = mlflow_client.get_registered_model(name)
    numbers = sorted(int(v.version) for v in mlflow_client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(f"{alias} -> {number}" for alias, number in sorted(model.aliases.items()))
    return f"it has version {', '.join(map(str, numbers)) or 'none'} and alias {aliases or 'none'}"
