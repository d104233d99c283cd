"""The downstream tasks: what is predicted for each 30-s epoch, and the figure that selects a model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """One label of an epoch.

    ``name`` is also the key of the label in a batch and the end of the registered model's name
    (``sleepfm-<name>``); ``classes`` are in the order of the label's values; ``metric`` is compared on
    ``val``, higher is better.
    """

    name: str
    classes: tuple[str, ...]
    kind: Literal["multiclass", "binary"]
    metric: str

    @property
    def registered_name(self) -> str:
        """Name of the task's model in the registry."""
        return f"sleepfm-{self.name}"


TASKS = {
    task.name: task
    for task in (
        Task("stage", STAGE_NAMES, "multiclass", "kappa"),
        Task("apnea", ("none", "apnea"), "binary", "auroc"),
        Task("hypopnea", ("none", "hypopnea"), "binary", "auroc"),
    )
}


def get_task(name: str) -> Task:
    """The task called ``name``. Raises :class:`ConfigError` naming the nearest one."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(TASKS)}"
    raise ConfigError(f"unknown task {name!r}; {hint}")
