"""Pretraining, by kind of model: a NeuroNet per modality, SynthSleepNet on the four of them, and temporal context on that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sleepfm.data.stream import Reading
from sleepfm.models.build import KINDS
from sleepfm.models.negatives import Negatives
from sleepfm.registry.registry import load_package
from sleepfm.stages.context import FIGURE, ContextStage
from sleepfm.stages.data_config import SourceConfig
from sleepfm.stages.encoders import ERRORS, LOSSES, MultimodalStage, UnimodalStage
from sleepfm.stages.monitor import FIGURES, MonitorConfig
from sleepfm.training.job import Context
from sleepfm.training.run_config import LocalFolder, RunConfig, present_names
from sleepfm.training.stage import Stage


class DataConfig(SourceConfig):
    """What is learnt from, and on how many items the loss is validated."""

    split: Literal["pretrain", "label"] = "pretrain"
    partitions: int = Field(default=1, ge=1)
    """Equal parts of every micro-step, each read from shards of its own: the number of nodes, if each node shall read its own
    shards. It decides the order of the data, so it stays the same when a run continues on another number of nodes."""
    validation_items: int = Field(default=512, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _under_their_present_names(cls, values: Any) -> Any:
        return present_names({"data": values})["data"] if isinstance(values, dict) else values


@dataclass(frozen=True)
class StageKind:
    """How models of one kind are pretrained: what builds the stage, and which registered models it starts from.

    ``encoders`` gives the modalities that ``config.encoders`` must name an encoder of; ``encoder`` says that ``config.encoder``
    must name one, whose embeddings the stage learns from. ``losses`` are the figures of held-out items by which weights may be
    selected, ``figures`` the other ones beside those of the monitor. ``rows`` are those that one item gives a batch norm,
    ``contrasts`` the contrastive losses of a micro-step and the width of their embeddings.
    """

    build: Callable[[PretrainConfig, Context], Stage]
    encoders: Callable[[Any], tuple[str, ...]] = lambda model: ()
    encoder: bool = False
    losses: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    rows: Callable[[Any], int] = lambda model: 1
    contrasts: Callable[[Any], tuple[int, int]] = lambda model: (0, 0)


def _unimodal(config: PretrainConfig, context: Context) -> Stage:
    return UnimodalStage(config)


def _multimodal(config: PretrainConfig, context: Context) -> Stage:
    return MultimodalStage(config, {name: context.pull(uri) for name, uri in config.encoders.items()})


def _context(config: PretrainConfig, context: Context) -> Stage:
    return ContextStage(config, load_package(context.pull(config.encoder)), context.work, context.on_paper)


# By the kind of model, see `sleepfm.models.build.KINDS`.
STAGES = {
    "neuronet": StageKind(_unimodal, losses=LOSSES, contrasts=lambda model: (1, model.projector[-1])),
    "synthsleepnet": StageKind(
        _multimodal,
        encoders=lambda model: model.modalities,
        losses=LOSSES,
        contrasts=lambda model: (len(model.channels), model.projector[-1]),
    ),
    "context": StageKind(_context, encoder=True, figures=(FIGURE,), rows=lambda model: model.length),
}

# The configuration of any of them.
if TYPE_CHECKING:
    ModelSection = Any
else:
    ModelSection = reduce(or_, (KINDS[kind].config for kind in STAGES))


class PretrainConfig(RunConfig):
    """Configuration of ``launch/pretrain.py``; ``encoders`` is for the multimodal stage alone, ``encoder`` and ``cache`` for
    the context stage.
    """

    example = "pretrain/eeg-base.yaml"
    data: DataConfig
    model: ModelSection = Field(discriminator="kind")
    encoders: dict[str, str] = Field(default_factory=dict)
    """Address of the pretrained NeuroNet of each modality."""
    encoder: str = ""
    """Address of the pretrained model whose embeddings the context learns from."""
    cache: LocalFolder = "runs/cache/embeddings"
    """Folder of those embeddings."""
    monitor: MonitorConfig | Literal["none"] = MonitorConfig()
    """The task that validations probe the encoder for; ``none`` needs no label, and the loss then selects the weights."""

    @model_validator(mode="after")
    def _encoders_fit_the_model(self) -> PretrainConfig:
        kind = STAGES[self.model.kind]
        needed = set(kind.encoders(self.model))
        if needed != self.encoders.keys():
            raise ValueError(
                f"encoders: model.channels need {', '.join(sorted(needed)) or 'none'}, "
                f"found {', '.join(sorted(self.encoders)) or 'none'}"
            )
        if kind.encoder != bool(self.encoder):
            takers = " or ".join(name for name, other in STAGES.items() if other.encoder)
            raise ValueError(f"encoder: only a model of kind {takers} has this key, and needs it; found {self.encoder!r}")
        return self

    @model_validator(mode="after")
    def _something_selects(self) -> PretrainConfig:
        if self.monitor == "none" and self.registry.metric.removeprefix("val/").startswith(("probe_", "knn_")):
            raise ValueError(
                f"monitor: with none there is no {self.registry.metric}, which registry.metric uses to select the weights; "
                "set registry.metric=val/loss and registry.mode=min"
            )
        return self

    @model_validator(mode="after")
    def _partitions_divide_the_step(self) -> PretrainConfig:
        items = self.train.global_batch // self.train.accumulation
        if items % self.data.partitions:
            raise ValueError(
                f"data.partitions={self.data.partitions} does not divide the {items} items of a micro-step "
                "(train.global_batch / train.accumulation)"
            )
        return self

    def parents(self) -> dict[str, str]:
        """The encoders, beside those of every job."""
        alone = {"encoder": self.encoder} if self.encoder else {}
        return super().parents() | alone | {f"encoders.{name}": address for name, address in self.encoders.items()}

    def figures(self) -> tuple[str, ...]:
        """The monitor's, or what a stage without one validates."""
        kind = STAGES[self.model.kind]
        return kind.figures or (FIGURES if self.monitor != "none" else ())

    def losses(self) -> tuple[str, ...]:
        """Those of encoders."""
        return STAGES[self.model.kind].losses

    def smaller_is_better(self) -> tuple[str, ...]:
        """Losses and errors; what else the loss is told with, such as the rank of embeddings, says nothing either way."""
        return ERRORS

    def larger_is_better(self) -> tuple[str, ...]:
        """The monitor's."""
        return FIGURES

    def validated_items(self) -> int | None:
        """``data.validation_items``; a stage that does not validate its loss in steps takes any number of them."""
        return self.data.validation_items if self.losses() else None

    def rows_per_item(self) -> int:
        """One in the projectors of encoders; every epoch of a sequence in a context."""
        return STAGES[self.model.kind].rows(self.model)

    def negatives(self) -> Negatives:
        """Those of the model's contrastive loss, if it has one."""
        chosen: Negatives = getattr(self.model, "negatives", "global")
        return chosen

    def contrasts(self) -> tuple[int, int]:
        """One for NeuroNet's two views, one for each channel of SynthSleepNet."""
        return STAGES[self.model.kind].contrasts(self.model)

    def is_built_at_once(self) -> bool:
        """All but a context's."""
        return not STAGES[self.model.kind].encoder

    def reading(self) -> Reading:
        """For the streams of the stage."""
        items = self.train.global_batch // self.train.accumulation
        return self.data.reading(self.train.seed, self.data.partitions, items // self.data.partitions)


def build_stage(config: PretrainConfig, context: Context) -> Stage:
    """The stage that ``config.model.kind`` asks for, with the same weights on every rank."""
    return STAGES[config.model.kind].build(config, context)
