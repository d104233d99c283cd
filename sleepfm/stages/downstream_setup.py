"""What the probe and the fine-tune set up alike: the model's configuration and the labels it learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sleepfm.data.ahead import fetching_ahead
from sleepfm.data.dataset import Dataset
from sleepfm.data.record_labels import RecordLabels
from sleepfm.errors import ConfigError
from sleepfm.models.build import model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.masked_context import MaskedContext
from sleepfm.models.recording import RecordingModel
from sleepfm.registry.registry import Resolved
from sleepfm.stages.downstream_config import DownstreamJob, FinetuneConfig
from sleepfm.tasks import TASKS


def downstream_plan(job: DownstreamJob, encoder: nn.Module, source: Resolved) -> DownstreamConfig:
    """Configuration of the model that ``job`` trains on ``encoder``.

    Raises:
        ConfigError: the encoder is a downstream model.
    """
    _check_pretrained(encoder, source)
    task = TASKS[job.task]
    tune, context, events = TuneConfig(mode="frozen"), ContextConfig(kind="none"), None
    if isinstance(job, FinetuneConfig):
        tune, context, events = job.tune, job.context, job.events
    return DownstreamConfig(
        task=task.name,
        classes=task.classes,
        encoder=model_config(encoder),
        tune=tune,
        context=context,
        head=job.head,
        events=events,
        evidence=task.needed(cast(Any, encoder).channels),
        band_powers=job.band_powers if isinstance(job, FinetuneConfig) else None,
    )


def _check_pretrained(encoder: nn.Module, source: Resolved) -> None:
    if isinstance(encoder, Downstream | RecordingModel):
        raise ConfigError(f"encoder: {source.uri} is a downstream model; give a pretrained encoder")


def pretrained_encoder(model: nn.Module, source: Resolved) -> nn.Module:
    """The encoder in ``model``, which may be a pretrained context around it. Raises :class:`ConfigError`: a downstream model."""
    _check_pretrained(model, source)
    return model.encoder if isinstance(model, MaskedContext) else model


def starting_point(job: DownstreamJob, model: nn.Module, source: Resolved) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """The encoder in ``model`` and, where ``model`` is a pretrained context, the weights that the job's context starts from.

    Raises:
        ConfigError: the job's context is not the pretrained one.
    """
    if not isinstance(model, MaskedContext):
        return model, None
    wanted = job.context if isinstance(job, FinetuneConfig) else ContextConfig(kind="none")
    held = model.config.context
    if wanted != held:
        differ = [name for name in type(held).model_fields if getattr(wanted, name) != getattr(held, name)]
        stated = ", ".join(f"{name} {getattr(held, name)} (this job: {getattr(wanted, name)})" for name in differ)
        raise ConfigError(f"context: {source.uri} contains a pretrained context with {stated}; set the same, or give its encoder")
    return model.encoder, model.context.state_dict()


def labels_of_split(
    dataset: Dataset, labels: RecordLabels, split: str, task: str, goes_on: Callable[[], None]
) -> NDArray[np.int64]:
    """All labels of ``task`` in ``split``, joined; ``goes_on`` is called with every recording."""
    found = []
    for row in fetching_ahead(dataset, dataset.select(split).tolist(), labels=(task,)):
        found.append(labels.of(row)[task])
        goes_on()
    return np.concatenate(found).astype(np.int64)
