"""What a model is worth with fewer channels: its figures for every subset of modalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY, MODALITIES
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ModelError
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.embed import embed_subsets, stored_epochs
from sleepfm.inference.predict import predict, predict_embedded
from sleepfm.inference.task_model import TaskModel
from sleepfm.tasks import TASKS


@dataclass(frozen=True)
class SubsetResult:
    """A task's figures when the model is given ``modalities`` only."""

    modalities: tuple[str, ...]
    evaluation: Evaluation


def modality_subsets(
    entry: TaskModel,
    dataset: Dataset,
    split: str,
    subsets: Sequence[tuple[str, ...]] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[SubsetResult]:
    """Figures of ``entry`` on ``split`` for each of ``subsets``: every one of the model's modalities by
    default, largest first.

    The model itself is the same throughout; channels outside the subset are absent. Recordings are read and go
    through the backbones once, whatever the number of subsets; ``progress`` counts recordings.

    Raises:
        DatasetError: the split holds no recording with such a channel.
        ModelError: the model has no channel of a subset.
    """
    model, channels = entry.model, entry.model.channels
    known = [name for name in MODALITIES if name in {CHANNEL_MODALITY[c] for c in channels}]
    if subsets is None:
        subsets = [s for size in range(len(known), 0, -1) for s in itertools.combinations(known, size)]
    for subset in subsets:
        if not set(subset) & set(known):
            raise ModelError(f"the model has no channel of {subset}; its channels: {', '.join(channels)}")
    if len(known) == 1:  # then every subset is all there is
        found = predict(model, dataset, split, window=entry.usage.window, chunk=chunk)
        return [SubsetResult(tuple(subset), _figures(entry, found)) for subset in subsets]
    masks = [[CHANNEL_MODALITY[name] in subset for name in channels] for subset in subsets]
    named = [{name for name, kept in zip(channels, mask, strict=True) if kept} for mask in masks]
    holding = [set(dataset.select(split, sorted(names)).tolist()) for names in named]
    nights: list[dict[str, Tensor]] = [{} for _ in subsets]
    rows = dataset.select(split, channels).tolist()
    for number, row in enumerate(rows, 1):
        record = dataset.names[row]
        embeddings = embed_subsets(model.encoder, stored_epochs(dataset, record, channels, chunk), masks)
        for place, held in enumerate(holding):
            if row in held:
                nights[place][record] = embeddings[place]
        if progress is not None:
            progress(number, len(rows))
    return [
        SubsetResult(tuple(subset), _figures(entry, predict_embedded(model, dataset, embedded, entry.usage.window)))
        for subset, embedded in zip(subsets, nights, strict=True)
    ]


def _figures(entry: TaskModel, predictions: Predictions) -> Evaluation:
    threshold = entry.usage.threshold
    # Tasks of several classes name the most probable one, and have none.
    return evaluate_predictions(TASKS[entry.task], predictions, math.nan if threshold is None else threshold)
