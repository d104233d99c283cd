"""Predictions of a downstream model on a split: every epoch of every recording once, streamed night by night."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY, EPOCH_SECONDS
from sleepfm.data.dataset import Dataset
from sleepfm.data.labels import RecordLabels
from sleepfm.data.reader import ShardReader
from sleepfm.errors import ModelError
from sleepfm.files import atomic_path
from sleepfm.inference.embed import embed, embed_frames, stored_epochs
from sleepfm.inference.windows import classify_night, locate_night
from sleepfm.models.downstream import Downstream


@dataclass(frozen=True)
class Predictions:
    """One row an epoch, in recording order: truth [N] (-1 unscored) and class probabilities [N, K] (nan
    unscorable); with an event head also the probability [N, 30] of an event in each second.
    """

    record: NDArray[Any]
    subject: NDArray[Any]
    epoch: NDArray[np.int64]
    truth: NDArray[np.int64]
    probability: NDArray[np.float64]
    seconds: NDArray[np.float64] | None = None

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[N], whether the model gave a probability."""
        return np.asarray(np.isfinite(self.probability).all(axis=1))

    def write(self, path: Path) -> None:
        """Write one Parquet row an epoch, with columns ``p0`` to ``p<K-1>``."""
        table: dict[str, Any] = {
            "record": self.record,
            "subject": self.subject,
            "epoch": self.epoch,
            "truth": self.truth,
        }
        table |= {f"p{k}": self.probability[:, k].astype(np.float32) for k in range(self.probability.shape[1])}
        if self.seconds is not None:
            table["seconds"] = list(self.seconds.astype(np.float32))
        with atomic_path(path) as temporary:
            pd.DataFrame(table).to_parquet(temporary, index=False)


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
    nights, seconds = {}, []
    for number, row in enumerate(rows, 1):
        record = dataset.names[row]
        epochs = stored_epochs(dataset, record, model.channels, chunk)
        if model.config.events is None:
            nights[record] = embed(model.encoder, epochs, keep)
        else:
            frames = embed_frames(model.encoder, epochs, keep)
            nights[record] = frames.mean(1)
            seconds.append(locate_night(model, frames, window).reshape(-1, EPOCH_SECONDS))
        if progress is not None:
            progress(number, len(rows))
    found = predict_embedded(model, dataset, nights, window)
    return replace(found, seconds=np.concatenate(seconds)) if seconds else found


def predict_embedded(model: Downstream, dataset: Dataset, nights: Mapping[str, Tensor], window: int) -> Predictions:
    """Predictions from the embeddings [E, D] of each recording, by name."""
    labels = RecordLabels(dataset, ShardReader(dataset), (model.config.task,), model.config.task)
    columns: list[tuple[Any, ...]] = []
    for record, embedding in nights.items():
        n_epochs, row = len(embedding), dataset.index_of(record)
        columns.append(
            (
                np.full(n_epochs, record, dtype=object),
                np.full(n_epochs, dataset.subjects[row], dtype=object),
                np.arange(n_epochs),
                labels.of(row)[model.config.task].astype(np.int64),
                classify_night(model, embedding, window),
            )
        )
    return Predictions(*(np.concatenate(column) for column in zip(*columns, strict=True)))
