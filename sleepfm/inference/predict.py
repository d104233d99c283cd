"""Predictions of a downstream model on a split: every epoch of every recording once, streamed night by night."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY, EPOCH_SECONDS
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.errors import ModelError
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.embed import stored_epochs
from sleepfm.inference.night_output import NightOutput, apply_to_embedding, apply_to_epochs
from sleepfm.models.downstream import Downstream


def predict(
    model: Downstream,
    dataset: Dataset,
    split: str,
    *,
    window: int,
    modalities: Sequence[str] | None = None,
    chunk: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Predictions of ``model`` (in eval mode) for its task on ``split``.

    Args:
        window: epochs that the temporal context sees at once, as in training.
        modalities: give the model only channels of these; all it knows by default.
        chunk: epochs encoded at a time.

    Raises:
        DatasetError: the split holds no recording with such a channel.
        ModelError: the model has no channel of ``modalities``.
    """
    keep = [modalities is None or CHANNEL_MODALITY[name] in modalities for name in model.channels]
    if not any(keep):
        raise ModelError(f"the model has no channel of {modalities}; its channels: {', '.join(model.channels)}")
    rows = dataset.select(split, [name for name, kept in zip(model.channels, keep, strict=True) if kept])

    def nights() -> Iterable[tuple[str, NightOutput]]:
        for number, row in enumerate(rows, 1):
            record = dataset.names[row]
            yield record, apply_to_epochs(model, stored_epochs(dataset, record, model.channels, chunk), window, keep)
            if progress is not None:
                progress(number, len(rows))

    return _predictions(model, dataset, nights())


def predict_embedded(model: Downstream, dataset: Dataset, nights: Mapping[str, Tensor], window: int) -> Predictions:
    """Predictions for every epoch from the embeddings [E, D] of each recording, by name."""
    found = ((record, apply_to_embedding(model, embedding, window)) for record, embedding in nights.items())
    return _predictions(model, dataset, found)


def _predictions(model: Downstream, dataset: Dataset, nights: Iterable[tuple[str, NightOutput]]) -> Predictions:
    labels = RecordLabels(dataset, ShardReader(dataset), (model.config.task,), model.config.task)
    columns: list[tuple[Any, ...]] = []
    seconds = []
    for name, night in nights:
        n_epochs, row = len(night.epochs), dataset.index_of(name)
        columns.append(
            (
                np.full(n_epochs, name, dtype=object),
                np.full(n_epochs, dataset.subjects[row], dtype=object),
                np.arange(n_epochs),
                labels.of(row)[model.config.task].astype(np.int64),
                night.epochs,
            )
        )
        if night.seconds is not None:
            seconds.append(night.seconds.reshape(-1, EPOCH_SECONDS))
    record, subject, epoch, truth, probability = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Predictions(record, subject, epoch, truth, probability, np.concatenate(seconds) if seconds else None)
