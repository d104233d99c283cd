"""The downstream tasks, each declared once: what is predicted, from which label, and how it is judged.

Configurations, defaults, the demo and scoring follow from :data:`TASKS`, of 30-s epochs, and :data:`RECORDING_TASKS`, of whole
recordings: a new task is an entry there and a configuration file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

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


@dataclass(frozen=True)
class ValueRule:
    """What is known of the person of a recording that a task reads, and which class each value is.

    Attributes:
        column: ``age``, ``sex``, ``bmi``, ``ahi``, or another name that the data set knows of people
            (:class:`sleepfm.signals.people.Person`); of a table of the user's the same unless the job names another.
        bounds: of classes of a number, the least value of the second class and so on; empty where the values are the classes.
    """

    column: str
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RecordingTask:
    """One label of a whole recording.

    Attributes:
        name: also the end of the registered model's name.
        kind: whether a number is told, one of several classes is named, or one of two is found from a threshold on.
        value: where the truth comes from.
        metric: the figure that selects a model on ``val`` unless a configuration says otherwise; higher is better.
        classes: of a task of classes, in order; of two the one that is found is the second.
        unit: of a number.
    """

    name: str
    kind: Literal["regression", "multiclass", "binary"]
    value: ValueRule
    metric: str
    classes: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        expected = {"regression": 0, "binary": 2}.get(self.kind, max(3, len(self.classes)))
        if len(self.classes) != expected:
            raise ValueError(f"task {self.name}: {len(self.classes)} classes do not go with {self.kind}")
        bounds = self.value.bounds
        if bounds and (len(bounds) != len(self.classes) - 1 or list(bounds) != sorted(set(bounds))):
            raise ValueError(f"task {self.name}: bounds {bounds} do not separate {len(self.classes)} classes")

    def target(self, value: float | str | None) -> float:
        """What is learnt of a person of whom ``value`` is known: the number, or the number of the class; nan of nothing.

        Raises:
            ValueError: ``value`` is no number where one is asked for, or the name of no class.
        """
        if value is None:
            return math.nan
        if self.kind == "regression" or self.value.bounds:
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(f"{number} is not a number that can be learnt")
            return float(sum(number >= bound for bound in self.value.bounds)) if self.classes else number
        if value not in self.classes:
            raise ValueError(f"is not one of the classes {', '.join(self.classes)}")
        return float(self.classes.index(str(value)))

    @property
    def registered_name(self) -> str:
        """Name of the task's model in the registry."""
        return f"sleepfm-{self.name}"


RECORDING_TASKS = {
    task.name: task
    for task in (
        RecordingTask("age", "regression", ValueRule("age"), "r2", unit="years"),
        RecordingTask("sex", "binary", ValueRule("sex"), "auroc", ("male", "female")),
        # AASM Task Force, Sleep 1999;22:667.
        RecordingTask(
            "ahi-class", "multiclass", ValueRule("ahi", (5.0, 15.0, 30.0)), "kappa", ("none", "mild", "moderate", "severe")
        ),
    )
}


class Classes(Protocol):
    """A task of classes, of epochs or of recordings, as figures see it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


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
    """The task of epochs called ``name``. Raises :class:`ConfigError` naming the nearest one and all there are.

    Example:
        >>> get_task("stage").classes
        ('W', 'N1', 'N2', 'N3', 'REM')
    """
    if name in TASKS:
        return TASKS[name]
    raise _unknown(name, TASKS)


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown task {name!r}; {hint}known tasks: {', '.join(known)}")


def _name_in(known: Mapping[str, object]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(str(_unknown(name, known)))
        return name

    return check


# A task of a table, in a configuration.
TaskName = Annotated[str, AfterValidator(_name_in(TASKS))]
RecordingTaskName = Annotated[str, AfterValidator(_name_in(RECORDING_TASKS))]
