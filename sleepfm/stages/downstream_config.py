"""Configuration of the downstream jobs (``launch/probe.py`` and ``launch/finetune.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sleepfm.config import Config
from sleepfm.evaluation.prediction_figures import VALIDATION_FIGURES
from sleepfm.evaluation.regression import FIGURES as REGRESSION_FIGURES
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.models.band_powers import BandPowersConfig
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import TuneConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.heads import HeadConfig
from sleepfm.models.recording import PoolConfig
from sleepfm.stages.data_config import SourceConfig
from sleepfm.stages.person_values import ValueTable
from sleepfm.tasks import RECORDING_TASKS, TASKS, RecordingTaskName, TaskName
from sleepfm.training.run_config import LocalFolder, RunConfig


class LabelledData(SourceConfig):
    """Which labels train the head and select it: all, or ``label_fraction`` of those of ``label`` and of ``val``.

    ``label_draw`` says of what: ``people``, with all of their recordings (the default), or ``epochs`` of every recording.
    """

    label_fraction: float = Field(default=1.0, gt=0, le=1)
    label_seed: int = 0
    label_draw: Literal["people", "epochs"] | None = None
    """None if all labels are used."""

    @model_validator(mode="before")
    @classmethod
    def _drawn_by_person(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        drawn = None if values.get("label_fraction", 1) == 1 else values.get("label_draw") or "people"
        return values | {"label_draw": drawn}


class GridConfig(Config):
    """Learning rates and weight decays that are all tried, pair by pair, on linear heads; the best on ``val`` is taken."""

    lr: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)

    def pairs(self) -> list[tuple[float, float]]:
        """Every pair, the smallest rate first."""
        return [(rate, decay) for rate in sorted(set(self.lr)) for decay in sorted(set(self.weight_decay))]


class CurveConfig(Config):
    """A learning curve: heads from each of ``fractions`` of the labels, drawn with each of ``seeds`` (0, 1 and so on)."""

    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.01, 0.05, 0.1, 1.0), min_length=1)
    seeds: int = Field(default=5, ge=1)
    draw: Literal["people", "epochs"] = "people"


class EvaluateConfig(Config):
    """How the finished model is evaluated; ``chunk`` epochs go through the encoder at a time."""

    resamples: int = Field(default=1000, ge=0)
    seed: int = 0
    chunk: int = Field(default=64, ge=1)
    allow_leakage: bool = False
    """Train although the encoder or another ancestor has seen a person of ``test``, and mark the results; also
    ``--allow-leakage``."""


class SequenceConfig(Config):
    """Consecutive epochs seen at once; training sequences start every ``stride`` epochs."""

    length: int = Field(default=20, ge=1)
    stride: int = Field(default=10, ge=1)


class TaskJob(RunConfig):
    """What jobs share that train for one of the declared ``tasks``.

    ``registry.name``, ``registry.metric`` and ``train.output`` follow from the task unless stated.
    """

    job: ClassVar[str]
    """Begins the name of the run's folder."""
    tasks: ClassVar[Mapping[str, Any]]
    """By name."""

    task: str
    encoder: str = "models:/sleepfm-synthsleepnet@champion"
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _registered_as_the_task_says(cls, values: Any) -> Any:
        task = cls.tasks.get(str(values.get("task"))) if isinstance(values, dict) else None
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

    @model_validator(mode="after")
    def _registered_under_its_task(self) -> TaskJob:
        expected = self.tasks[self.task].registered_name
        if self.registry.name != expected:
            raise ValueError(f"registry.name: task {self.task} is registered as {expected!r}")
        return self


class DownstreamJob(TaskJob):
    """What the probe and the fine-tune share, whose tasks are of epochs.

    ``weighting`` ``inverse`` weighs each class by the inverse of its frequency among the labelled epochs
    (mean weight 1), which helps rare classes and spoils calibration; ``inverse-root`` by its square root, half of the way;
    ``none`` is the paper's.
    """

    tasks = TASKS

    task: TaskName
    data: LabelledData
    head: HeadConfig = HeadConfig()
    weighting: Literal["none", "inverse", "inverse-root"] = "none"

    def figures(self) -> tuple[str, ...]:
        """The headline figures of the task."""
        return VALIDATION_FIGURES

    def larger_is_better(self) -> tuple[str, ...]:
        """All of them."""
        return VALIDATION_FIGURES


class ProbeConfig(DownstreamJob):
    """A head on a frozen encoder. Embeddings are kept in ``cache`` for the next job on the same encoder and
    data set.

    ``grid`` chooses ``train.lr`` and ``train.weight_decay`` on ``val`` before the head is trained; ``curve`` adds what linear
    heads reach on ``test`` from fewer labels.
    """

    example = "downstream/probe-stage-base.yaml"
    job = "probe"
    cache: LocalFolder = "runs/cache/embeddings"
    grid: GridConfig | None = None
    curve: CurveConfig | None = None

    @model_validator(mode="after")
    def _tried_on_linear_heads(self) -> ProbeConfig:
        asked = "grid" if self.grid is not None else "curve" if self.curve is not None else ""
        if asked and self.head.kind != "linear":
            raise ValueError(f"{asked}: all its heads are linear, so set head.kind=linear")
        if asked and self.train.clip:
            raise ValueError(f"{asked}: its heads are trained together, and clipping would mix their gradients; set train.clip=0")
        if self.curve is not None and self.data.label_fraction != 1:
            raise ValueError("curve: has its own fractions; leave data.label_fraction at 1")
        return self

    def tried(self) -> list[tuple[float, float]]:
        """Pairs of learning rate and weight decay that are tried: those of ``grid``, else the one of ``train``."""
        return self.grid.pairs() if self.grid is not None else [(self.train.lr, self.train.weight_decay)]

    def rows_per_item(self) -> int:
        """An epoch in the hidden layers of the head."""
        return 1 if self.head.kind == "mlp" else 0

    def is_built_at_once(self) -> bool:
        """Not before the data set is embedded."""
        return False


class FinetuneConfig(DownstreamJob):
    """Encoder, temporal context and head together; ``encoder`` may name a pretrained context, which is then started from.

    ``events`` adds a head that finds onset and duration to the second, for tasks that are about events. With ``cache``, a folder,
    what context and heads see of a frozen encoder is computed once and kept there for the next job on it: embeddings, or frames
    under an event head. With ``layer_decay`` below 1 each layer of the encoder learns at that share of the rate of the one above.
    ``modality_dropout`` is the chance that a modality is left out of a sequence, so that the model learns to do without it; one
    that the task needs (EEG for stages) stays. ``channel_dropout`` is that of a channel of a modality that stays, of which one
    always does; it may be 1. Each channel of a sequence, but for SpO2, is multiplied by a factor between 1 / ``gain`` and
    ``gain``: recordings are scaled by their own spread, which is another one for an excerpt than for a whole night. It also
    passes through a filter whose gain differs by up to ``filter_db`` decibels from one, as other recorders have others.
    ``band_powers`` names channels whose power in each band context and head are told beside the embedding, or instead of it.
    """

    example = "downstream/finetune-stage-base.yaml"
    job = "finetune"
    tune: TuneConfig = TuneConfig(mode="lora")
    context: ContextConfig = ContextConfig(kind="mamba")
    sequence: SequenceConfig = SequenceConfig()
    events: EventHeadConfig | None = None
    cache: LocalFolder | None = None
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    channel_dropout: float = Field(default=0.0, ge=0, le=1)
    gain: float = Field(default=1.0, ge=1, le=10)
    filter_db: float = Field(default=0.0, ge=0, le=40)
    band_powers: BandPowersConfig | None = None

    def is_varied(self) -> bool:
        """Whether sequences are changed as they are trained on."""
        return self.modality_dropout > 0 or self.channel_dropout > 0 or self.gain > 1 or self.filter_db > 0

    def is_built_at_once(self) -> bool:
        """With a cache not before the data set is encoded."""
        return self.cache is None

    def rows_per_item(self) -> int:
        """Every epoch of a sequence, in the hidden layers of the head and in the context."""
        return self.sequence.length if self.head.kind == "mlp" or self.context.kind != "none" else 0

    @model_validator(mode="after")
    def _only_frozen_encoders_are_computed_once(self) -> FinetuneConfig:
        if self.cache is not None and self.tune.mode != "frozen":
            raise ValueError("cache: only a frozen encoder can be computed once; set tune.mode=frozen")
        if self.cache is not None and self.is_varied():
            raise ValueError(
                "modality_dropout, channel_dropout, gain, filter_db: what a cache holds cannot be changed; remove cache, or "
                "leave them out"
            )
        return self

    @model_validator(mode="after")
    def _powers_are_of_signals(self) -> FinetuneConfig:
        if self.cache is not None and self.band_powers is not None:
            raise ValueError("band_powers: a cache holds none; remove cache or band_powers")
        return self

    @model_validator(mode="after")
    def _layers_that_learn(self) -> FinetuneConfig:
        if self.layer_decay < 1 and self.tune.mode == "frozen":
            raise ValueError(
                "layer_decay: a frozen encoder has no layer that learns; set tune.mode=lora or full, or remove layer_decay"
            )
        return self

    @model_validator(mode="after")
    def _events_have_seconds(self) -> FinetuneConfig:
        if self.events is not None and not TASKS[self.task].event:
            raise ValueError(f"events: task {self.task} has no onset and duration; remove the section")
        return self


class RecordingProbeConfig(TaskJob):
    """A head on the frozen embeddings of whole recordings; these are kept in ``cache``, where the probe keeps its own.

    ``values`` is a table of the user's with what is to be learnt; without it, it is what the data set knows of its people.
    """

    example = "downstream/recordings-age-base.yaml"
    job = "probe"
    tasks = RECORDING_TASKS

    task: RecordingTaskName
    data: SourceConfig
    pool: PoolConfig = PoolConfig()
    weighting: Literal["none", "inverse"] = "none"
    values: ValueTable | None = None
    cache: LocalFolder = "runs/cache/embeddings"

    def figures(self) -> tuple[str, ...]:
        """The headline figures of the task."""
        return REGRESSION_FIGURES if RECORDING_TASKS[self.task].kind == "regression" else VALIDATION_FIGURES

    def smaller_is_better(self) -> tuple[str, ...]:
        """The errors."""
        return tuple(name for name in self.figures() if name in ("val/mae", "val/rmse"))

    def larger_is_better(self) -> tuple[str, ...]:
        """The others."""
        return tuple(name for name in self.figures() if name not in self.smaller_is_better())

    def is_built_at_once(self) -> bool:
        """Not before the data set is embedded."""
        return False
