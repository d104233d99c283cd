"""Predictions of a downstream model on a split: every epoch of every recording once, streamed night by night."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY, EPOCH_SECONDS
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, epochs_with_any
from sleepfm.errors import ModelError
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.embed import recordings_ahead
from sleepfm.inference.night_output import NightOutput, apply_to_embedding, apply_to_epochs, apply_to_frames
from sleepfm.models.downstream import Downstream


class NightPrediction(NamedTuple):
    """What a model says of the epochs of one recording, beside the truth."""

    truth: NDArray[np.int64]
    """[E], -1 unscored."""
    epochs: NDArray[np.float64]
    """[E, K]"""
    seconds: NDArray[np.float64]
    """[E, 30]; [0, 30] without an event head."""
    kinds: NDArray[np.float64]
    """[E, 30, K]; [0, 30, 0] without a head that tells kinds of events apart."""


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
    rows = dataset.select(split, [name for name, kept in zip(model.channels, keep, strict=True) if kept]).tolist()
    found = []
    for number, night in enumerate(predict_nights(model, dataset, rows, window, chunk, keep), 1):
        found.append(night)
        if progress is not None:
            progress(number, len(rows))
    return join_nights(dataset, rows, found, model.config.kinds)


def predict_nights(
    model: Downstream,
    dataset: Dataset,
    rows: Sequence[int],
    window: int,
    chunk: int,
    keep: Sequence[bool] | None = None,
    at_chunk: Callable[[], None] | None = None,
) -> Iterator[NightPrediction]:
    """What ``model`` says of each of ``rows``, recordings in shard order, which are read ahead; ``keep`` as in
    :func:`sleepfm.inference.embed.embed`, ``at_chunk`` is called with every chunk of epochs.
    """
    reader = ShardReader(dataset)
    # Of a model that is to do without all channels that its task asks for, the figures without them are wanted.
    needed = [name for name in model.evidence if keep is None or keep[model.channels.index(name)]]
    outputs = (
        (row, apply_to_epochs(model, epochs, window, keep, assessed=epochs_with_any(dataset, reader, row, needed)))
        for row, epochs in recordings_ahead(dataset, rows, model.channels, chunk, at_chunk)
    )
    return _beside_the_truth(model, dataset, outputs)


def predict_embedded_nights(
    model: Downstream, dataset: Dataset, rows: Sequence[int], nights: Mapping[str, Tensor], window: int
) -> Iterator[NightPrediction]:
    """The same from ``nights``, the embeddings [E, D] of each recording by name."""
    reader = ShardReader(dataset)
    outputs = (
        (
            row,
            apply_to_embedding(model, nights[dataset.names[row]], window, epochs_with_any(dataset, reader, row, model.evidence)),
        )
        for row in rows
    )
    return _beside_the_truth(model, dataset, outputs)


def predict_encoded_nights(
    model: Downstream, dataset: Dataset, rows: Sequence[int], nights: Callable[[str], Tensor], window: int
) -> Iterator[NightPrediction]:
    """The same of a model with an event head, from what ``nights`` gives for a recording's name: its frame tokens [E, F, D]."""
    reader = ShardReader(dataset)
    outputs = (
        (
            row,
            apply_to_frames(model, nights(dataset.names[row]), window, epochs_with_any(dataset, reader, row, model.evidence)),
        )
        for row in rows
    )
    return _beside_the_truth(model, dataset, outputs)


def predict_embedded(model: Downstream, dataset: Dataset, nights: Mapping[str, Tensor], window: int) -> Predictions:
    """Predictions for every epoch from the embeddings [E, D] of each recording, by name."""
    rows = [dataset.index_of(name) for name in nights]
    return join_nights(dataset, rows, list(predict_embedded_nights(model, dataset, rows, nights, window)))


def join_nights(
    dataset: Dataset, rows: Sequence[int], nights: Sequence[NightPrediction], kinds: Sequence[str] = ()
) -> Predictions:
    """The predictions ``nights`` of the recordings ``rows`` as one; ``kinds`` are those that the model tells apart."""
    columns: list[tuple[Any, ...]] = []
    for row, night in zip(rows, nights, strict=True):
        n_epochs = len(night.epochs)
        name, subject = (np.full(n_epochs, text[row], dtype=object) for text in (dataset.names, dataset.subjects))
        columns.append((name, subject, np.arange(n_epochs), *night))
    *joined, seconds, each = (np.concatenate(column) for column in zip(*columns, strict=True))
    record, subject, epoch, truth, probability = joined
    of_kind = {name: each[:, :, number] for number, name in enumerate(kinds)}
    return Predictions(record, subject, epoch, truth, probability, seconds if len(seconds) else None, of_kind)


def _beside_the_truth(
    model: Downstream, dataset: Dataset, nights: Iterable[tuple[int, NightOutput]]
) -> Iterator[NightPrediction]:
    task = model.config.task
    labels = RecordLabels(dataset, ShardReader(dataset), (task,), task)
    for row, night in nights:
        seconds = np.empty(0) if night.seconds is None else night.seconds
        kinds = np.empty((0, 0)) if night.kinds is None else night.kinds
        yield NightPrediction(
            labels.of(row)[task].astype(np.int64),
            night.epochs,
            seconds.reshape(-1, EPOCH_SECONDS),
            kinds.reshape(len(kinds) // EPOCH_SECONDS, EPOCH_SECONDS, kinds.shape[1]),
        )
