"""A downstream model with what its package says about how to use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm.errors import ModelError
from sleepfm.models.downstream import Downstream
from sleepfm.models.usage import Usage
from sleepfm.registry.registry import load_package

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
    def load(cls, item: str | Path | nn.Module, store: str | None = None, mapped: bool = False) -> TaskModel:
        """The model at a registry address or in a package folder, or a module that :func:`sleepfm.load` gave; ``mapped`` as in
        :func:`sleepfm.registry.registry.load_package`.

        Raises:
            RegistryError: nothing registered there, or bytes that have changed.
            ModelError: not a downstream model, or a module that does not say how it is used.
        """
        if isinstance(item, (str, Path)):
            package = load_package(item, store, mapped)
            module, address = package.module, package.source.uri
            what = f"{address}: a {package.config['model']['kind']}"
        else:
            module, address, what = item, "a module in memory", type(item).__name__
        if not isinstance(module, Downstream):
            raise ModelError(
                f"{what} gives no stages or events; name a model of sleepfm-stage, sleepfm-apnea or sleepfm-hypopnea"
            )
        if module.usage is None:
            raise ModelError(
                f"{address}: a model of {module.config.task} that does not say how it is used (window, thresholds); "
                "give the address of its package, load it with sleepfm.load, or set its `usage` (sleepfm.models.usage.Usage)"
            )
        module.usage.check(module.config, address)
        return cls(module, module.usage, address)
