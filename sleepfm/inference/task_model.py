"""A downstream model with what its package says about how to use it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm import builtin
from sleepfm.config import validate
from sleepfm.errors import ConfigError, ModelError, RegistryError
from sleepfm.models.downstream import Downstream
from sleepfm.models.usage import Usage
from sleepfm.registry.package import CONFIG, is_scorer, read_config, verify
from sleepfm.registry.registry import Resolved, load_package, resolve
from sleepfm.registry.scorer_version import Part, parts_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TaskModel:
    """A downstream model in eval mode, how it is used, and where it came from."""

    model: Downstream
    usage: Usage
    address: str

    @property
    def task(self) -> str:
        """What it predicts."""
        return self.usage.task

    @classmethod
    def load(cls, item: str | Path | Resolved | nn.Module, store: str | None = None, mapped: bool = False) -> TaskModel:
        """The model at a registry address or in a model folder, fetched or not, or a module that :func:`sleepfm.load` gave;
        ``mapped`` as in :func:`sleepfm.registry.registry.load_package`.

        Raises:
            RegistryError: nothing registered there, or bytes that have changed.
            ModelError: not a downstream model, or a module that does not say how it is used.
        """
        if isinstance(item, (str, Path, Resolved)):
            package = load_package(item, store, mapped)
            module, address = package.module, package.source.uri
            what = f"{address}: a {package.config['model']['kind']}"
        else:
            module, address, what = item, "a module in memory", type(item).__name__
        if not isinstance(module, Downstream):
            raise ModelError(
                f"model: {what} gives no stages or events; name a model of sleepfm-stage, sleepfm-apnea or sleepfm-hypopnea"
            )
        if module.usage is None:
            raise ModelError(
                f"{address}: a model of {module.config.task} that does not say how it is used (window, thresholds); "
                "give the address of its package, load it with sleepfm.load, or set its `usage` (sleepfm.models.usage.Usage)"
            )
        module.usage.check(module.config, address)
        return cls(module, module.usage, address)


def load_task_models(item: str | Path | nn.Module, store: str | None = None, mapped: bool = False) -> list[TaskModel]:
    """The model that ``item`` is or names, as :meth:`TaskModel.load`, or all models of the scorer that it names, used as it says;
    ``builtin`` names all of the installation.

    Raises:
        RegistryError: nothing registered there, bytes that have changed, or a model of the scorer that is not what it names.
        ModelError: not a downstream model, or one that cannot be used so.
    """
    if not isinstance(item, (str, Path)):
        return [TaskModel.load(item)]
    if str(item) in builtin.ALL:
        return [TaskModel.load(address, store, mapped) for address in builtin.addresses()]
    found = resolve(item, store)
    if not is_scorer(read_config(found.path)):
        return [TaskModel.load(found, store, mapped)]
    config = verify(found.path, found.label, found.tags if found.name else None)
    parts = parts_of(config, str(found.path / CONFIG))
    return [_load_part(part, found.path / task, store, mapped, str(found.path / CONFIG)) for task, part in parts.items()]


def _load_part(part: Part, folder: Path, store: str | None, mapped: bool, origin: str) -> TaskModel:
    """A model of a scorer: from ``folder`` of an exported one, else from the registry."""
    if folder.is_dir():
        source = Resolved(part.address, folder, part.name, part.version, part.digests)
    else:
        source = resolve(part.address, store)
        if differing := [key for key, digest in part.digests.items() if source.tags.get(key) != digest]:
            raise RegistryError(
                f"{origin}: names {part.label} by another {' and '.join(differing)} than {part.address} has in this registry; "
                "bind a scorer there (sleepfm models bind), or name the registry that it is from"
            )
    found = TaskModel.load(source, store, mapped)
    try:
        usage = validate(Usage, part.usage, origin)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    usage.check(found.model.config, origin)
    found.model.usage = usage
    return replace(found, usage=usage)
