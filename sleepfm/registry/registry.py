"""The MLflow registry that holds the trained models.

A registered version's tags hold the digests of its package's files, the digests of data and configuration,
the git commit, the parent versions and the metrics; a changed byte is refused on load.

Addresses: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, the folder of a package, or ``builtin``
(:mod:`sleepfm.builtin`). :func:`look_up` says what an address means, and :func:`fetch` brings that to the node of whoever asks: a
job asks once what it starts from, and fetches on every node.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sleepfm import builtin
from sleepfm.errors import MissingVersionError, ModelError, RegistryError
from sleepfm.files import sha256_file
from sleepfm.registry.artifacts import beside, upload
from sleepfm.registry.mlflow_model import write_mlflow_files
from sleepfm.registry.package import CONFIG, build_module, is_scorer, read_config, verify
from sleepfm.registry.package_cache import cached_package
from sleepfm.registry.pruning import AUTOMATIC, is_untouched, mark
from sleepfm.registry.sqlite_look_up import StoredVersion, lacks_alias, stored_version
from sleepfm.registry.store import (
    NOT_THERE,
    answering,
    client,
    pages,
    reason_of,
    registered,
    set_defaults,
    shown,
    store_uri,
    versions_of,
)
from sleepfm.signals.files import is_path

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient
    from torch import nn

    from sleepfm.models.embedding import EmbeddingModel


# The tag that holds the intervals of figures: a JSON object of [low, high] by the figure's name.
INTERVALS = "intervals"
# A version with this tag is judged by people whom it, or an ancestor, has seen before; the tag says whom.
LEAK = "people.leak"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")


@dataclass(frozen=True)
class Entry:
    """What an address means, the same on every node: a registered version, or, without a name, a package's folder.

    Attributes:
        uri: the address that always means this: ``models:/NAME/VERSION``, or the folder.
        source: where its files are, as MLflow has it, or the folder.
        store: of the registry, an address.
        tags: of the registered version; of a folder, the digests of its files under the same keys.
    """

    uri: str
    source: str
    store: str
    name: str = ""
    version: str = ""
    run_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """Where an address leads: a model folder of this node, and the entry's address, name, version and tags."""

    uri: str
    path: Path
    name: str = ""
    version: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``name:version``, as lineage tags write it; of a built-in model :attr:`permanent`, of another package its folder."""
        if self.name:
            return f"{self.name}:{self.version}"
        return self.permanent if builtin.is_address(self.uri) else str(self.path)

    @property
    def permanent(self) -> str:
        """The address that leads to this package or to none, also in another installation."""
        return builtin.pinned(self.uri, self.tags["sha256"]) if builtin.is_address(self.uri) else self.uri


@dataclass(frozen=True)
class Package:
    """A loaded package: the module in eval mode, its ``config.yaml``, and where it came from."""

    module: nn.Module
    config: dict[str, Any]
    source: Resolved


def resolve(uri: str | Path, store: str | None = None) -> Resolved:
    """The package that ``uri`` names, on this node. Raises as :func:`look_up` and :func:`fetch`."""
    return fetch(look_up(uri, store))


def look_up(uri: str | Path, store: str | None = None) -> Entry:
    """What ``uri`` names; no artifact is fetched.

    Raises:
        RegistryError: not an address, or nothing registered under it, where the message lists what is; or no answer.
    """
    text = str(uri)
    if builtin.is_address(text) or not text.startswith("models:"):
        folder = builtin.package(text) if builtin.is_address(text) else Path(text)
        if not text or not folder.is_dir():
            raise RegistryError(
                f"{text or 'an empty address'}: no such folder, and not models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        weights = read_config(folder).get("weights", {})
        whole = sha256_file(folder / CONFIG)
        digests = {"sha256": weights.get("sha256", whole), "sha256.config": whole}
        address, _, digest = builtin.unpinned(text)
        if builtin.is_address(text) and digest not in ("", digests["sha256"]):
            raise RegistryError(
                f"{text}: this installation has another one, {builtin.pinned(address, digests['sha256'])}; install the sleepfm "
                "that had it, or start anew from the present model"
            )
        return Entry(text, str(folder), store_uri(store), tags=digests)
    match = _ADDRESS.match(text)
    version: ModelVersion | StoredVersion | None = None
    if match is not None:
        version = stored_version(match["name"], match["alias"], match["version"], store)
    if version is None:
        with answering(store):
            version = version_at(text, client(store))
    return _entry(text, version, store)


def look_up_if_there(address: str, store: str | None = None) -> Entry | None:
    """What the ``models:`` address names, None where the registry holds no such version or alias. Raises as :func:`look_up`."""
    match = _ADDRESS.match(address)
    if match is not None and match["alias"] and lacks_alias(match["name"], match["alias"], store):
        return None
    try:
        return look_up(address, store)
    except MissingVersionError:
        return None


def _entry(address: str, version: ModelVersion | StoredVersion, store: str | None) -> Entry:
    if not version.source:
        raise RegistryError(f"{address}: was registered without files; give a version that this program registered")
    return Entry(
        uri=f"models:/{version.name}/{version.version}",
        source=version.source,
        store=store_uri(store),
        name=version.name,
        version=str(version.version),
        run_id=version.run_id or "",
        tags=dict(version.tags),
    )


def fetch(entry: Entry) -> Resolved:
    """The package of ``entry`` on this node: where it lies, if this node sees that, else in the node's cache, from the store.

    See :mod:`sleepfm.registry.package_cache`. The files' digests are checked where they are copied and where they are loaded.

    Raises:
        RegistryError: it cannot be fetched or kept, or its digests are not those of ``entry``.
        BusyError: another process has been fetching for too long.
    """
    if not entry.name:
        path = Path(entry.source)
        if not path.is_dir():
            raise RegistryError(
                f"{entry.uri}: no such folder on this host; a model folder must be there on every host "
                "of the job: copy it, or give a registered version"
            )
        read_config(path)
        if sha256_file(path / CONFIG) != entry.tags["sha256.config"]:
            raise RegistryError(
                f"{entry.uri}: contains another model than the same folder on the host of rank 0; copy that folder here, "
                "or give a registered version"
            )
        verify(path, entry.uri, entry.tags)
    else:
        path = _folder_in_sight(entry) or cached_package(entry.uri, entry.tags, lambda folder: _download(entry, folder))
    return Resolved(entry.uri, path, entry.name, entry.version, entry.tags)


def fetch_config(entry: Entry) -> dict[str, Any]:
    """The ``config.yaml`` of a registered version, without its weights.

    Raises:
        RegistryError: it cannot be fetched, or is not as it was registered.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder_in_sight(entry) or _download(entry, Path(scratch), CONFIG).parent
        if sha256_file(folder / CONFIG) != entry.tags.get("sha256.config"):
            raise RegistryError(f"{entry.uri}: its {CONFIG} is not as it was registered; restore the file or train again")
        return read_config(folder)


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
        raise MissingVersionError(f"{address}: no {wanted} of {name!r}; {_holdings(mlflow_client, name)}") from error


def load_package(source: str | Path | Resolved, store: str | None = None, mapped: bool = False) -> Package:
    """Load a package with every digest checked. Raises :class:`RegistryError` and :class:`ModelError`.

    ``mapped`` is for who only computes with it: the weights stay where the file is mapped into memory, and are not copied.
    """
    from sleepfm.models.build import build_model

    found = source if isinstance(source, Resolved) else resolve(source, store)
    config = verify(found.path, found.label, found.tags if found.name else None)
    if is_scorer(config):
        raise ModelError(
            f"{found.uri}: is a scorer of several models, not one model; use it with sleepfm.score or sleepfm score --model"
        )
    return Package(build_module(found.path, config, build_model, mapped=mapped), config, found)


def load(uri: str | Path, store: str | None = None) -> EmbeddingModel:
    """The model at ``uri`` in eval mode; ``usage`` of a downstream one says how it is used.

    Example:
        >>> model = load("encoder")  # the folder of a package; or "models:/sleepfm-synthsleepnet@champion"
        >>> model.embed("patient.edf").shape  # 30 epochs of 30 s
        torch.Size([30, 128])

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, the folder of a package, or an address of :mod:`sleepfm.builtin`.
        store: address of the MLflow store; by default ``MLFLOW_TRACKING_URI``, else ``sqlite:///runs/mlflow.db``.

    Raises:
        RegistryError: nothing registered there, or bytes that have changed.
        ModelError: weights or a usage that do not fit the model.
    """
    if not is_path(uri):
        kind = type(uri).__name__
        raise RegistryError(f"uri: expected models:/NAME@ALIAS, models:/NAME/VERSION or a model folder, found a {kind}")
    return cast("EmbeddingModel", load_package(uri, store).module)


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
        with tempfile.TemporaryDirectory() as others:
            write_mlflow_files(Path(others), read_config(Path(folder)))
            upload(mlflow_client, run_id, Path(others), artifacts)
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


def _folder_in_sight(entry: Entry) -> Path | None:
    """The registered package where the store keeps it, if that is a folder that this node sees."""
    artifacts = entry.tags.get("artifacts")
    if artifacts and entry.run_id:
        # MLflow stores absolute paths; beside the database they are found even after the folder was moved.
        folder = beside(entry.store, entry.run_id) / artifacts
        if folder.is_dir():
            return folder
    if not entry.source.startswith(("/", "file:")):
        return None
    from mlflow.utils.file_utils import local_file_uri_to_path

    path = Path(local_file_uri_to_path(entry.source))
    if not path.is_dir():
        raise RegistryError(
            f"{entry.uri}: cannot fetch {entry.source} (no such folder on this host); let every host see this folder, or keep "
            "models on an MLflow server that serves artifacts and set MLFLOW_TRACKING_URI to it"
        )
    return path


def _download(entry: Entry, folder: Path, file: str = "") -> Path:
    """Fetch the files of ``entry``, or one of them, into ``folder``; where in it they are, or it is."""
    set_defaults()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    print(f"fetching {entry.uri}", file=sys.stderr, flush=True)
    try:
        source = f"{entry.source}/{file}" if file else entry.source
        return Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=entry.store))
    # ImportError: the library of an object store that is not installed.
    except (MlflowException, OSError, ImportError) as error:
        raise RegistryError(
            f"{entry.uri}: cannot fetch {entry.source} from {shown(entry.store)} ({reason_of(error)}); let this host reach the "
            f"store, and see to room in {folder.parent}"
        ) from error


def _holdings(mlflow_client: MlflowClient, name: str) -> str:
    models = pages(lambda token: mlflow_client.search_registered_models(page_token=token))
    names = [model.name for model in models]
    if name not in names:
        return registered(name, names)
    model = mlflow_client.get_registered_model(name)
    numbers = [int(version.version) for version in versions_of(mlflow_client, name)]
    aliases = ", ".join(f"{alias} -> {number}" for alias, number in sorted(model.aliases.items()))
    return f"it has version {', '.join(map(str, numbers)) or 'none'} and alias {aliases or 'none'}"
