"""How a downstream model is used: what its package says beside weights and structure, and what scoring a night needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sleepfm.config import Config, to_dict, validate
from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.downstream import DownstreamConfig

# Of a package's `config.yaml`: the section written here, what else stands there, and what stood in its place up to 2026-11.
SECTION = "usage"
_OTHERS = ("model", "weights", "training", "facts")
_EARLIER = ("task", "window", "threshold", "threshold_rule", "event_threshold")
# What scoring took where an earlier package, or one converted from the reference, says nothing.
DEFAULT_WINDOW, DEFAULT_THRESHOLD = 20, 0.5


class LabelRule(Config):
    """The rule by which events label epochs (:mod:`sleepfm.signals.labels`), by name and version."""

    name: str
    version: int = Field(ge=1)


class Usage(Config):
    """How a downstream model is used.

    Attributes:
        task: what it predicts; ``classes`` in the order of its outputs.
        window: epochs that its temporal context sees at once, as in training.
        threshold: probability from which an epoch is positive, of tasks of two classes; ``threshold_rule`` says how it
            was chosen.
        event_threshold: probability from which a second belongs to an event, of models that tell seconds apart.
        resolution_s: seconds to which it tells events, 1 with an event head, else those of an epoch.
        label_rule: what labelled the epochs that it was trained on; None where that is not known, or no events are.
        temperature: what the logits of an epoch are divided by before the softmax (:mod:`sleepfm.evaluation.calibration`),
            fitted on ``val``; 1 of packages that do not say. ``threshold`` is of probabilities at this temperature.
        event_threshold_rule: how ``event_threshold`` was chosen.
    """

    task: str
    classes: tuple[str, ...] = Field(min_length=2)
    window: int = Field(ge=1)
    threshold: float | None = Field(default=None, ge=0, le=1)
    threshold_rule: str | None = None
    event_threshold: float | None = Field(default=None, ge=0, le=1)
    resolution_s: Literal[1, 30] = 30
    label_rule: LabelRule | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    event_threshold_rule: str | None = None

    @model_validator(mode="after")
    def _has_its_thresholds(self) -> Usage:
        if self.binary and self.threshold is None:
            raise ValueError(f"threshold: task {self.task} has two classes and needs one")
        if self.located and self.event_threshold is None:
            raise ValueError("event_threshold: a model that locates events to the second needs one")
        return self

    @property
    def binary(self) -> bool:
        """Whether an epoch is positive or not."""
        return len(self.classes) == 2

    @property
    def located(self) -> bool:
        """Whether events are told to the second."""
        return self.resolution_s < EPOCH_SECONDS

    @property
    def detection_threshold(self) -> float:
        """Probability from which something is found: of a second where events are told to the second, else of an epoch.

        Raises:
            ModelError: a task of more than two classes.
        """
        threshold = self.event_threshold if self.located else self.threshold
        if threshold is None:
            raise ModelError(f"a model of {self.task} finds no events; its classes: {', '.join(self.classes)}")
        return threshold

    def to_package(self) -> dict[str, Any]:
        """The section of a package's ``config.yaml``."""
        return {SECTION: to_dict(self)}

    @classmethod
    def from_package(cls, config: Mapping[str, Any], model: DownstreamConfig, origin: str) -> Usage:
        """What the ``config.yaml`` of the package of ``model`` says, also one of an earlier version; ``origin`` names the file.

        Raises:
            ModelError: a key that is not known, wrong or missing, or a usage that is not one of ``model``.
        """
        stated = {key: value for key, value in config.items() if key not in _OTHERS}
        section = stated.pop(SECTION, None)
        known = () if section is not None else _EARLIER
        if unknown := [key for key in stated if key not in known]:
            raise ModelError(f"{origin}: unknown key {unknown[0]!r}; the use of the model is described under {SECTION!r}")
        try:
            usage = validate(cls, _of_earlier(stated, model) if section is None else section, origin)
        except ConfigError as error:
            raise ModelError(str(error)) from error
        usage.check(model, origin)
        return usage

    def check(self, model: DownstreamConfig, origin: str) -> None:
        """Raises :class:`ModelError` where this is not how a model of the configuration ``model`` can be used."""
        mine = (self.task, self.classes, self.located)
        if mine != (theirs := (model.task, model.classes, model.events is not None)):
            names = ("task", "classes", "events to the second")
            differ = [f"{n} {a} (the model: {b})" for n, a, b in zip(names, mine, theirs, strict=True) if a != b]
            raise ModelError(f"{origin}: describes the use of another model: {', '.join(differ)}")


def _of_earlier(stated: Mapping[str, Any], model: DownstreamConfig) -> dict[str, Any]:
    """A usage from the keys of a package that has no section of its own."""
    found: dict[str, Any] = {"task": model.task, "classes": model.classes, "window": DEFAULT_WINDOW} | dict(stated)
    if len(model.classes) == 2 and found.get("threshold") is None:
        found["threshold"] = DEFAULT_THRESHOLD
    if model.events is not None:
        found |= {"resolution_s": 1, "event_threshold": found.get("event_threshold") or DEFAULT_THRESHOLD}
    return found
