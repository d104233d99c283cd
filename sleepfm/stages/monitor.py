"""What a frozen encoder is worth while it is being pretrained: probes from ``label`` to ``val`` subjects.

Cheap and bounded: a fixed, seeded draw of single epochs (``label_epochs`` and ``val_epochs`` at most), embedded once a
validation by rank 0 while the other ranks wait. ``test`` is never read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from sleepfm.config import Config
from sleepfm.data.dataset import Dataset
from sleepfm.data.stream import Reading, SequenceStream
from sleepfm.errors import DatasetError
from sleepfm.tasks import TaskName

SHARDS = 64
FIGURES = ("val/probe_kappa", "val/probe_accuracy", "val/knn_kappa")


class MonitorConfig(Config):
    """Which label is probed, on how many epochs of each split, and the probes' own settings."""

    task: TaskName = "stage"
    label_epochs: int = Field(default=2000, ge=10)
    val_epochs: int = Field(default=1000, ge=10)
    neighbours: int = Field(default=5, ge=1)
    chunk: int = Field(default=64, ge=1)


class Monitor:
    """Logistic regression and k nearest neighbours on the embeddings of fixed epochs.

    Raises:
        DatasetError: a split is empty or unlabelled, or holds labels of one class only.
    """

    def __init__(self, dataset: Dataset, channels: tuple[str, ...], config: MonitorConfig, seed: int) -> None:
        self._config = config
        self._splits = {
            split: (self._stream(dataset, split, channels, seed), count)
            for split, count in (("label", config.label_epochs), ("val", config.val_epochs))
        }
        self._origin = dataset.origin

    def _stream(self, dataset: Dataset, split: str, channels: tuple[str, ...], seed: int) -> SequenceStream:
        task = self._config.task
        # Shuffled over as many shards as hold more subjects than a probe needs: over the whole split, unless it is large.
        reading = Reading(seed, min(len(dataset.shard_paths), SHARDS), read_ahead=False)
        try:
            return SequenceStream(
                dataset,
                split,
                channels,
                reading=reading,
                labels=(task,),
                target=task,
                labelled_only=True,
            )
        except DatasetError as error:
            raise DatasetError(
                f"{error}. The encoder is probed for {task!r} while it is trained, which needs labels in `label` and `val`; "
                "train without: monitor=none registry.metric=val/loss registry.mode=min"
            ) from error

    @torch.inference_mode()
    def __call__(self, module: Any) -> dict[str, float]:
        """``val/probe_kappa``, ``val/probe_accuracy`` and ``val/knn_kappa`` of ``module.encode``."""
        (train, truth), (held, held_truth) = self._embed(module, "label"), self._embed(module, "val")
        if not (np.isfinite(train).all() and np.isfinite(held).all()):
            # A model that has diverged is worth nothing, and no reason to stop: no comparison is won by what is not a number.
            return dict.fromkeys(FIGURES, math.nan)
        # Two seconds of imports, which the ranks that do not probe need not take.
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(train)
        train, held = scaler.transform(train), scaler.transform(held)
        probe = LogisticRegression(C=0.1, max_iter=300).fit(train, truth).predict(held)
        neighbours = min(self._config.neighbours, len(truth))
        nearest = KNeighborsClassifier(neighbours, metric="cosine").fit(train, truth).predict(held)
        return {
            "val/probe_kappa": _kappa(held_truth, probe),
            "val/probe_accuracy": float(np.mean(held_truth == probe)),
            "val/knn_kappa": _kappa(held_truth, nearest),
        }

    def _embed(self, module: Any, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        stream, wanted = self._splits[split]
        count = min(wanted, len(stream))
        device = next(module.parameters()).device
        rows, labels = [], []
        for start in range(0, count, self._config.chunk):
            batch = stream.batch(start, min(self._config.chunk, count - start))
            signals, present = batch.signals[:, 0].to(device), batch.present[:, 0].to(device)
            rows.append(module.encode(signals, present).float().cpu())
            labels.append(batch.labels[self._config.task][:, 0])
        truth = torch.cat(labels).numpy()
        if len(np.unique(truth)) < 2:
            raise DatasetError(
                f"{self._origin}: {len(truth)} epochs of split {split!r} hold fewer than two classes of "
                f"{self._config.task!r}, so the encoder cannot be probed; build from more subjects"
            )
        return torch.cat(rows).numpy(), truth


def _kappa(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Cohen's kappa; 0 where both sides name one class only (agreement by chance is then all there is)."""
    from sklearn.metrics import cohen_kappa_score

    if len(np.union1d(truth, predicted)) < 2:
        return 0.0
    return float(cohen_kappa_score(truth, predicted))
