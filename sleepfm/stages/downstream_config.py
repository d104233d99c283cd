"""Configuration of the downstream jobs (``launch/probe.py`` and ``launch/finetune.py``)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sleepfm.config import Config
from sleepfm.evaluation.prediction_figures import VALIDATION_FIGURES
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import TuneConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.heads import HeadConfig
from sleepfm.stages.data_config import SourceConfig
from sleepfm.tasks import TASKS, TaskName
from sleepfm.training.run_config import LocalFolder, RunConfig


class LabelledData(SourceConfig):
    """Which labelled epochs train the head: a share of those of each recording of ``label``."""

    label_fraction: float = Field(default=1.0, gt=0, le=1)
    label_seed: int = 0


class EvaluateConfig(Config):
    """How the finished model is evaluated; ``chunk`` epochs go through the encoder at a time."""

    resamples: int = Field(default=1000, ge=0)
    seed: int = 0
    chunk: int = Field(default=64, ge=1)
    allow_leakage: bool = False
    """Go on, and mark what is reported, where a person of ``test`` was seen by the encoder or another ancestor; also
    ``--allow-leakage``."""


class SequenceConfig(Config):
    """Consecutive epochs seen at once; training sequences start every ``stride`` epochs."""

    length: int = Field(default=20, ge=1)
    stride: int = Field(default=10, ge=1)


class DownstreamJob(RunConfig):
    """What the probe and the fine-tune share.

    ``weighting`` ``inverse`` weighs each class by the inverse of its frequency among the labelled epochs
    (mean weight 1), which helps rare classes and spoils calibration; ``none`` is the paper's. ``registry.name``,
    ``registry.metric`` and ``train.output`` follow from the task unless stated.
    """

    job: ClassVar[str]
    """Begins the name of the run's folder."""

    task: TaskName
    encoder: str = "models:/sleepfm-synthsleepnet@champion"
    data: LabelledData
    head: HeadConfig = HeadConfig()
    weighting: Literal["none", "inverse"] = "none"
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _registered_as_the_task_says(cls, values: Any) -> Any:
        task = TASKS.get(str(values.get("task"))) if isinstance(values, dict) else None
        if task is None or not isinstance(stated := values.get("registry", {}), dict):
            return values
        found = values | {"registry": {"name": task.registered_name, "metric": f"val/{task.metric}", "mode": "max"} | stated}
        if isinstance(train := values.get("train"), dict):
            job = "events" if values.get("events") else cls.job
            found["train"] = {"output": f"runs/{job}-{task.name}"} | train
        return found

    def parents(self) -> dict[str, str]:
        """The encoder, beside those of every job."""
        return super().parents() | {"encoder": self.encoder}

    def bound_champions(self) -> dict[str, str]:
        """Those of all tasks that are scored by default, if this is one of them."""
        return CHAMPIONS if self.task in CHAMPIONS else {}

    def figures(self) -> tuple[str, ...]:
        """The headline figures of the task."""
        return VALIDATION_FIGURES

    def larger_is_better(self) -> tuple[str, ...]:
        """All of them."""
        return VALIDATION_FIGURES

    @model_validator(mode="after")
    def _registered_under_its_task(self) -> DownstreamJob:
        expected = TASKS[self.task].registered_name
        if self.registry.name != expected:
            raise ValueError(f"registry.name: task {self.task} is registered as {expected!r}")
        return self


class ProbeConfig(DownstreamJob):
    """A head on a frozen encoder. Embeddings are kept in ``cache`` for the next job on the same encoder and
    data set.
    """

    job = "probe"
    cache: LocalFolder = "runs/cache/embeddings"

    def rows_per_item(self) -> int:
        """An epoch in the hidden layers of the head."""
        return 1 if self.head.kind == "mlp" else 0

    def is_built_at_once(self) -> bool:
        """Not before the data set is embedded."""
        return False


class FinetuneConfig(DownstreamJob):
    """Encoder, temporal context and head together; ``encoder`` may name a pretrained context, which is then started from.

    ``events`` adds a head that finds onset and duration to the second, for tasks that are about events. With ``cache``, a folder,
    the frames of a frozen encoder are computed once and kept there for every job with an event head on it.
    """

    job = "finetune"
    tune: TuneConfig = TuneConfig(mode="lora")
    context: ContextConfig = ContextConfig(kind="mamba")
    sequence: SequenceConfig = SequenceConfig()
    events: EventHeadConfig | None = None
    cache: LocalFolder | None = None

    def is_built_at_once(self) -> bool:
        """With a cache not before the data set is encoded."""
        return self.cache is None

    def rows_per_item(self) -> int:
        """Every epoch of a sequence, in the hidden layers of the head and in the context."""
        return self.sequence.length if self.head.kind == "mlp" or self.context.kind != "none" else 0

    @model_validator(mode="after")
    def _only_frozen_frames_are_kept(self) -> FinetuneConfig:
        if self.cache is not None and (self.tune.mode != "frozen" or self.events is None):
            raise ValueError("cache: frames are kept of a frozen encoder under an event head; set tune.mode=frozen and `events`")
        return self

    @model_validator(mode="after")
    def _events_have_seconds(self) -> FinetuneConfig:
        if self.events is not None and not TASKS[self.task].event:
            raise ValueError(f"events: task {self.task} has no onset and duration; leave the section out")
        return self
