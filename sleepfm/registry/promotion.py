"""Which version of a model an alias such as ``champion`` means.

A figure decides between two versions only if it was taken alike: for the same task, of models of the same architecture and size,
on the same ``val`` set (data set digest, split, and what is drawn from it). Versions say so in their tags, which
:func:`comparison` makes. Versions that differ in it are of different kinds: the alias stays with the version that has it, the
best version of another kind gets ``ALIAS-<digest>``, and a person moves the alias with :func:`promote_by_hand`.

MLflow has no operation that reads an alias and sets it at once. So every promotion looks at all versions of its kind, and looks
again after it has set an alias: whichever of several jobs is last leaves the best of all that are registered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sleepfm.config import digest
from sleepfm.errors import RegistryError
from sleepfm.registry.store import NOT_THERE, answering, client, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
_TASK, _MODEL, _DATASET, _MEASURE = "compared.task", "compared.model", "dataset_digest", "compared.measure"
_PARAMETERS = "parameters"
# A version that a person chose for an alias holds `chosen_by_hand.ALIAS`: the number of the latest version at that time.
_BY_HAND = "chosen_by_hand"
_ATTEMPTS = 10


@dataclass(frozen=True)
class Promotion:
    """What became of a version that was offered.

    Attributes:
        promoted: whether it holds the alias that it was offered for.
        alias: the alias that it holds now: that one, or that of its kind; '' for none.
        note: what a reader must know of it beyond that, in words; '' for nothing.
    """

    promoted: bool
    alias: str
    note: str = ""


def comparison(task: str, model: Mapping[str, Any], measure: Mapping[str, Any], parameters: int) -> dict[str, str]:
    """Tags that say with which other versions a version can be compared, beside its ``dataset_digest``.

    Args:
        task: what the model is trained for, such as ``pretrain-eeg`` or ``stage``.
        model: the package's ``model`` section. Of a downstream model its encoder counts, and whether it finds events: heads and
            contexts on one encoder compete.
        measure: what, beside the data set, decides the figure: the name of the metric, how many epochs are drawn by which seed.
        parameters: their number, for messages.
    """
    structure = dict(model)
    if structure.get("kind") == "downstream":
        structure = {key: structure[key] for key in ("kind", "task", "classes", "encoder")} | {
            "events": structure.get("events") is not None
        }
    return {
        _TASK: task,
        _MODEL: digest(structure)[:12],
        _MEASURE: digest(dict(measure))[:12],
        _PARAMETERS: str(parameters),
    }


def promote(
    name: str, version: str, metric: str, mode: str = "max", alias: str = CHAMPION, store: str | None = None
) -> Promotion:
    """Move ``alias`` of ``name`` to ``version`` if its ``metric`` is strictly better than that of every version of its kind.

    The first version with a finite metric gets it; so does a later package of the holder's own weights and run, which says more
    of them. A holder of the same kind without the metric is replaced. A holder of another kind keeps the alias, and the best of
    this kind gets ``ALIAS-<digest>``. A version that a person chose yields only to versions that are registered later.

    Raises:
        RegistryError: ``version`` has no such metric, or the store does not answer.
    """
    mlflow_client = client(store)
    key = f"metric.{metric}"
    with answering(store):
        offered = mlflow_client.get_model_version(name, version)
        if key not in offered.tags:
            raise RegistryError(f"models:/{name}/{version}: has no metric {metric!r}, which decides {alias!r}")
        if not math.isfinite(float(offered.tags[key])):
            return Promotion(False, "", f"its {metric} is not a number")
        note = ""
        for _ in range(_ATTEMPTS):
            holder = _holder(mlflow_client, name, alias)
            differs = _differences(offered, holder, key) if holder is not None else []
            target = f"{alias}-{_kind(offered)}" if differs else alias
            held = _holder(mlflow_client, name, target) if differs else holder
            if differs and holder is not None:
                note = (
                    f"not compared with {alias} {name}:{holder.version}, which has {' and '.join(differs)}; to make this one "
                    f"{alias}: sleepfm models promote {name} {version}"
                )
            elif holder is not None and key not in holder.tags:
                note = f"{name}:{holder.version}, {alias} until now, has no {metric}"
            best = _best(versions_of(mlflow_client, name), offered, held, key, mode, target)
            if held is not None and str(held.version) == str(best.version):
                break
            _set_alias(mlflow_client, name, target, best)
        is_best = str(best.version) == str(offered.version)
        return Promotion(is_best and not differs, target if is_best else "", note)


def promote_by_hand(address: str, alias: str = CHAMPION, store: str | None = None) -> tuple[str, str]:
    """Have ``alias`` mean the version at ``address``, whatever was measured; the versions that it means now and meant before.

    Only versions that are registered later can take it by a better figure.

    Raises:
        RegistryError: no such version, or the store does not answer.
    """
    from sleepfm.registry.registry import version_at

    mlflow_client = client(store)
    with answering(store):
        version = version_at(address, mlflow_client)
        before = _holder(mlflow_client, version.name, alias)
        latest = versions_of(mlflow_client, version.name)[-1]
        mlflow_client.set_model_version_tag(version.name, str(version.version), f"{_BY_HAND}.{alias}", str(latest.version))
        mlflow_client.set_registered_model_alias(version.name, alias, str(version.version))
        return f"{version.name}:{version.version}", f"{version.name}:{before.version}" if before is not None else ""


def _set_alias(mlflow_client: MlflowClient, name: str, alias: str, version: ModelVersion) -> None:
    """Set ``alias``, unless another job did at this moment: MLflow's own insertion of a new alias is not safe against that."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client.set_registered_model_alias(name, alias, str(version.version))
    except MlflowException:
        if _holder(mlflow_client, name, alias) is None:
            raise


def _holder(mlflow_client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return None


def _kind(version: ModelVersion) -> str:
    """Eight digits that versions which can be compared have in common."""
    return digest([version.tags.get(key, "") for key in (_TASK, _MODEL, _DATASET, _MEASURE)])[:8]


def _differences(offered: ModelVersion, holder: ModelVersion, metric_key: str) -> list[str]:
    """In what ``holder`` is of another kind than ``offered``, in words; nothing if their figures can be compared."""
    mine, theirs = offered.tags, holder.tags

    def differs(key: str) -> bool:
        return mine.get(key) != theirs.get(key)

    found = []
    if differs(_TASK):
        found.append(f"another task ({theirs.get(_TASK, 'not stated')}, this one {mine.get(_TASK, 'not stated')})")
    if differs(_MODEL):
        sizes = f"{_count(theirs)} parameters, this one {_count(mine)}"
        found.append(f"another architecture or size ({sizes})")
    if differs(_DATASET):
        sets = f"{theirs.get(_DATASET, 'none')[:12]}, this one {mine.get(_DATASET, 'none')[:12]}"
        found.append(f"figures of another data set ({sets})")
    if not found and metric_key in theirs and differs(_MEASURE):
        found.append("figures of another draw from val")
    return found


def _count(tags: Mapping[str, str]) -> str:
    text = tags.get(_PARAMETERS, "")
    return f"{int(text):,}" if text.isdigit() else "unknown"


def _best(
    versions: list[ModelVersion], offered: ModelVersion, holder: ModelVersion | None, key: str, mode: str, alias: str
) -> ModelVersion:
    """The best of the versions that can be compared with ``offered``; ``holder`` unless another is strictly better."""
    best = holder if holder is not None and math.isfinite(float(holder.tags.get(key, "nan"))) else None
    chosen_at = max(int(version.tags.get(f"{_BY_HAND}.{alias}", 0)) for version in versions) if holder is not None else 0
    for version in versions:
        if int(version.version) <= chosen_at or _kind(version) != _kind(offered):
            continue
        value = float(version.tags.get(key, "nan"))
        if not math.isfinite(value):
            continue
        held = float(best.tags[key]) if best is not None else math.nan
        if best is None or (value > held if mode == "max" else value < held) or _says_more(version, best):
            best = version
    if best is None:
        # Only versions before a person's choice have the figure.
        assert holder is not None
        return holder
    return best


def _says_more(version: ModelVersion, best: ModelVersion) -> bool:
    """Whether ``version`` is a later package of the weights and run of ``best``."""
    weights = version.tags.get("sha256")
    same = weights is not None and (version.run_id, weights) == (best.run_id, best.tags.get("sha256"))
    return same and int(version.version) > int(best.version)
