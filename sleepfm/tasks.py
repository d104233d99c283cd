"""The downstream tasks, each declared once: what is predicted for each 30-s epoch, from which label, and how it is judged.

Configurations, defaults, the demo and scoring follow from :data:`TASKS`: a new task is an entry there and a configuration file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import ConfigError


@dataclass(frozen=True)
class LabelRule:
    """Which label of the data set a task reads, and which class each of its values is.

    Attributes:
        stored: name of the label in the shards, see :data:`sleepfm.data.format.LABELS`.
        class_of: class of the stored value 0, 1 and so on, -1 for one that is not to be learnt; empty where the stored values are
            the classes. Unscored epochs (-1) stay so.
    """

    stored: str
    class_of: tuple[int, ...] = ()

    def classes(self, stored: NDArray[np.int8]) -> NDArray[np.int8]:
        """Classes of the stored values, of the same shape; -1 where unscored."""
        if not self.class_of:
            return stored
        # The last entry is that of -1.
        return np.array([*self.class_of, -1], np.int8)[stored]


@dataclass(frozen=True)
class Task:
    """One label of an epoch.

    Attributes:
        name: also the key of the label in a batch and the end of the registered model's name.
        classes: in the order of the label's values; of a binary task the negative one first.
        kind: whether one of several classes is named, or a class is found or not from a threshold on.
        label: where the truth comes from.
        metric: the figure that selects a model on ``val`` unless a configuration says otherwise; higher is better.
        event: the family of respiratory or other events (:func:`sleepfm.evaluation.events.event_family`) whose presence is the
            positive class: they are compared with those of the model, and may be told to the second. Empty where there is none.
        evidence: channels of which a model that takes any needs one usable in an epoch, or the epoch is not assessed: nobody
            calls an epoch free of apneas in which neither flow nor effort was recorded.
        unit: what one label is of.
        optional: scored only where its model is named.
    """

    name: str
    classes: tuple[str, ...]
    kind: Literal["multiclass", "binary"]
    label: LabelRule
    metric: str
    event: str = ""
    evidence: tuple[str, ...] = ()
    unit: str = "30-s epoch"
    optional: bool = False

    def __post_init__(self) -> None:
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError(f"task {self.name}: a binary task has two classes, found {', '.join(self.classes)}")
        if self.event and self.kind != "binary":
            raise ValueError(f"task {self.name}: only a binary task says where events are")
        if not all(-1 <= value < len(self.classes) for value in self.label.class_of):
            raise ValueError(f"task {self.name}: its label rule {self.label.class_of} names a class beyond {self.classes}")

    def needed(self, channels: Sequence[str]) -> tuple[str, ...]:
        """Those of a model's ``channels`` of which one must be usable in an epoch that it assesses; none where none need be."""
        return tuple(name for name in channels if name in self.evidence)

    @property
    def registered_name(self) -> str:
        """Name of the task's model in the registry."""
        return f"sleepfm-{self.name}"


# Airflow, or the effort that goes with it; saturation alone shows that something happened, not what.
BREATHING = ("AIRFLOW", "THORAX", "ABDOMEN")
# Sleep stages and arousals are defined in it (AASM manual).
EEG = ("EEG_C3", "EEG_C4")

TASKS = {
    task.name: task
    for task in (
        Task("stage", STAGE_NAMES, "multiclass", LabelRule("stage"), "kappa", evidence=EEG),
        Task("apnea", ("none", "apnea"), "binary", LabelRule("apnea"), "auroc", "apnea", BREATHING),
        Task("hypopnea", ("none", "hypopnea"), "binary", LabelRule("hypopnea"), "auroc", "hypopnea", BREATHING),
        Task(
            "arousal",
            ("none", "arousal"),
            "binary",
            LabelRule("arousal"),
            "auroc",
            event="arousal",
            evidence=EEG,
            optional=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task called ``name``. Raises :class:`ConfigError` naming the nearest one and all there are."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown task {name!r}; {hint}known tasks: {', '.join(TASKS)}")


def _known(name: str) -> str:
    try:
        return get_task(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from error


# A task of the table, in a configuration.
TaskName = Annotated[str, AfterValidator(_known)]
