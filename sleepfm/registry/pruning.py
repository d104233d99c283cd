"""Which versions of a run are kept: the newest few of its bests, and whatever somebody uses.

A run that registers every best leaves one version after the other. Those that it registered by itself carry the tag
``registered_automatically``, the digest of their other tags. Only such versions are ever removed, and of these none that

* holds an alias, among them ``champion`` and ``last``,
* is a parent of a version or of a run that has begun,
* has been tagged, described or staged by a person since,
* has its files named by another version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sleepfm.config import digest
from sleepfm.errors import RegistryError
from sleepfm.registry.artifacts import remove
from sleepfm.registry.store import answering, client, pages, registered, shown, store_uri, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

AUTOMATIC = "registered_automatically"
# On a run, while artifacts of its removed versions go: what a kill leaves is removed by the next pruning.
_GOING = "sleepfm.removing"


def mark(tags: Mapping[str, str]) -> dict[str, str]:
    """``tags`` of a version with the one that says that no person registered or changed it."""
    others = {key: value for key, value in tags.items() if key != AUTOMATIC and not key.startswith("mlflow.")}
    return dict(tags) | {AUTOMATIC: digest(others)[:16]}


def is_untouched(tags: Mapping[str, str]) -> bool:
    """Whether ``tags`` are what :func:`mark` made, and nobody has changed one."""
    return AUTOMATIC in tags and mark(tags)[AUTOMATIC] == tags[AUTOMATIC]


def prune(name: str, run_id: str, keep: int, store: str | None = None) -> list[str]:
    """Remove the versions of ``name`` that the run ``run_id`` registered by itself, but the newest ``keep``, and their artifacts.

    Newer bests of one run are better ones. Returns the numbers of the removed versions.

    Raises:
        RegistryError: the store does not answer; what was not removed is at the next call.
    """
    mlflow_client = client(store)
    with answering(store):
        _remove_artifacts(mlflow_client, run_id, store)
        mine = [
            version for version in versions_of(mlflow_client, name) if version.run_id == run_id and is_untouched(version.tags)
        ]
        surplus = mine[: max(0, len(mine) - keep)]
        if not surplus:
            return []
        everything = _everything(mlflow_client)
        parents, aliased = _parents(mlflow_client, everything), _aliased(mlflow_client, name)
        going = [
            version
            for version in surplus
            if _label(version) not in aliased and not _is_parent(version, parents) and _is_unused(version, everything)
        ]
        if not going:
            return []
        names = {version.tags["artifacts"] for version in going if "artifacts" in version.tags}
        staying = [version for version in everything if _label(version) not in {_label(other) for other in going}]
        names -= {str(version.tags.get("artifacts", "")) for version in staying if version.run_id == run_id}
        mlflow_client.set_tag(run_id, _GOING, json.dumps(sorted(names)))
        removed = []
        for version in going:
            # Read again: an alias may have been set since.
            if _label(version) not in _aliased(mlflow_client, name):
                mlflow_client.delete_model_version(name, str(version.version))
                removed.append(str(version.version))
        _remove_artifacts(mlflow_client, run_id, store)
    return removed


def prune_all(keep: int, name: str | None = None, store: str | None = None) -> list[str]:
    """:func:`prune` for every run of every model, or of ``name`` alone; the removed versions as ``name:version``.

    Raises:
        RegistryError: the store does not answer, or holds no model ``name``.
    """
    mlflow_client = client(store)
    with answering(store):
        everything = _everything(mlflow_client)
    runs = sorted({(v.name, v.run_id) for v in everything if v.run_id and AUTOMATIC in v.tags and name in (None, v.name)})
    models = {version.name for version in everything}
    if name is not None and name not in models:
        raise RegistryError(f"{name}: no such model in {shown(store_uri(store))}; {registered(name, models)}")
    return [f"{model}:{version}" for model, run_id in runs for version in prune(model, run_id, keep, store)]


def _remove_artifacts(mlflow_client: MlflowClient, run_id: str, store: str | None) -> None:
    """Remove what the run's tag names, unless a version needs it after all."""
    text = mlflow_client.get_run(run_id).data.tags.get(_GOING)
    if text is None:
        return
    needed = {str(version.source) for version in _everything(mlflow_client)}
    for artifacts in json.loads(text):
        if not any(source.rstrip("/").endswith(f"/{run_id}/artifacts/{artifacts}") for source in needed):
            remove(mlflow_client, run_id, artifacts, store)
    mlflow_client.delete_tag(run_id, _GOING)


def _everything(mlflow_client: MlflowClient) -> list[ModelVersion]:
    models = pages(lambda token: mlflow_client.search_registered_models(page_token=token))
    return [version for model in list(models) for version in versions_of(mlflow_client, model.name)]


def _parents(mlflow_client: MlflowClient, versions: Iterable[ModelVersion]) -> list[str]:
    """The tag ``parents`` of every version, and of every run, which may have begun and have no version yet."""
    experiments = [one.experiment_id for one in pages(lambda token: mlflow_client.search_experiments(page_token=token))]
    runs = pages(lambda token: mlflow_client.search_runs(experiments, "tags.parents LIKE '%:%'", page_token=token))
    tags: list[Mapping[str, Any]] = [version.tags for version in versions]
    tags += [run.data.tags for run in runs] if experiments else []
    return [str(each["parents"]) for each in tags if "parents" in each]


def _is_parent(version: ModelVersion, parents: Iterable[str]) -> bool:
    label = re.compile(rf"(?<![\w.-]){re.escape(_label(version))}(?!\d)")
    return any(label.search(text) for text in parents)


def _aliased(mlflow_client: MlflowClient, name: str) -> set[str]:
    """``name:version`` of every version that holds an alias."""
    return {f"{name}:{number}" for number in mlflow_client.get_registered_model(name).aliases.values()}


def _is_unused(version: ModelVersion, everything: Iterable[ModelVersion]) -> bool:
    named = {str(version.source), f"models:/{version.name}/{version.version}"}
    return (
        not version.description
        and version.current_stage in (None, "None")
        and not any(other.source in named for other in everything if _label(other) != _label(version))
    )


def _label(version: ModelVersion) -> str:
    return f"{version.name}:{version.version}"
