"""What a frozen encoder is worth while it is being pretrained: probes from ``label`` to ``val`` subjects.

Cheap and bounded: a fixed, seeded draw of single epochs (``label_epochs`` and ``val_epochs`` at most), embedded once a
validation by all ranks together; the probes themselves are rank 0's. ``test`` is never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sleepfm.config import Config
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixed_shards import MixedShardStream
from sleepfm.data.mixed_stream import sources_of
from sleepfm.data.mixture import Mixture
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import Reading, SequenceStream
from sleepfm.errors import DatasetError
from sleepfm.models.inputs import held_channels
from sleepfm.stages.probes import logistic_regression, nearest_neighbours, standardise
from sleepfm.tasks import TaskName
from sleepfm.training.ranks.shared_work import ALONE, SharedWork

# Embeddings [N, D], labels [N] and numbers of sources [N].
Embedded = tuple[Tensor, Tensor, Tensor]

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
    """Logistic regression and k nearest neighbours on the embeddings of fixed epochs; of a mixture, those of all sources that
    have labels, by their size.

    Raises:
        DatasetError: a split is empty or unlabelled, or holds labels of one class only.
    """

    def __init__(self, data: Dataset | Mixture, channels: tuple[str, ...], config: MonitorConfig, seed: int) -> None:
        self._config, self._channels = config, channels
        self._splits = {
            split: (self._stream(data, split, channels, seed), count)
            for split, count in (("label", config.label_epochs), ("val", config.val_epochs))
        }
        self._origin = data.origin

    def _stream(
        self, data: Dataset | Mixture, split: str, channels: tuple[str, ...], seed: int
    ) -> SequenceStream | MixedShardStream:
        task = self._config.task

        def make(dataset: Dataset, reading: Reading, **shared: Any) -> SequenceStream:
            # Shuffled over as many shards as hold more subjects than a probe needs: over the whole split, unless it is large.
            over = replace(reading, shuffle_shards=min(len(dataset.shard_paths), SHARDS))
            return SequenceStream(
                dataset, split, channels, reading=over, labels=(task,), target=task, labelled_only=True, **shared
            )

        try:
            return Mixture.of(data).stream(make, Reading(seed, read_ahead=False), natural=True)
        except DatasetError as error:
            raise DatasetError(
                f"{error}. The encoder is probed for {task!r} while it is trained, which needs labels in `label` and `val`; "
                "to train without a probe, set monitor=none registry.metric=val/loss registry.mode=min"
            ) from error

    def __call__(self, module: Any, work: SharedWork = ALONE) -> dict[str, float]:
        """``val/probe_kappa``, ``val/probe_accuracy`` and ``val/knn_kappa`` of ``module.encode``, on every rank of ``work``; of a
        mixture also ``val/probe_kappa/<source>``.
        """
        label, val = (self._embed(module, split, work) for split in ("label", "val"))
        return work.on_main(lambda: self._probe(self._joined("label", label), self._joined("val", val), work.device))

    def _probe(self, label: Embedded, val: Embedded, device: torch.device) -> dict[str, float]:
        (train, truth, _), (held, held_truth, source) = label, val
        if not (train.isfinite().all() and held.isfinite().all()):
            # A model that has diverged is worth nothing, and no reason to stop: no comparison is won by what is not a number.
            return dict.fromkeys(FIGURES, math.nan)
        train, held = standardise(train.to(device), held.to(device))
        classes = truth.to(device)
        probe = logistic_regression(train, classes, held).cpu().numpy()
        nearest = nearest_neighbours(train, classes, held, self._config.neighbours).cpu().numpy()
        by_source = {
            f"{FIGURES[0]}/{name}": _kappa(held_truth[source == number].numpy(), probe[(source == number).numpy()])
            for number, name in enumerate(sources_of(self._splits["val"][0]))
            if (source == number).any()
        }
        return by_source | {
            "val/probe_kappa": _kappa(held_truth.numpy(), probe),
            "val/probe_accuracy": float(np.mean(held_truth.numpy() == probe)),
            "val/knn_kappa": _kappa(held_truth.numpy(), nearest),
        }

    def _embed(self, module: Any, split: str, work: SharedWork) -> list[tuple[Tensor, ...]]:
        """Embeddings [B, D], labels [B] and numbers of sources [B] of the epochs of ``split``, chunk by chunk, on rank 0."""
        stream, wanted = self._splits[split]
        count, size = min(wanted, len(stream)), self._config.chunk
        chunks = [(start, min(size, count - start)) for start in range(0, count, size)]
        device = next(module.parameters()).device

        @torch.inference_mode()
        def embed(batch: Batch) -> Tensor:
            signals, present, channels = held_channels(batch.signals[:, 0], batch.present[:, 0], self._channels)
            return module.encode(signals.to(device), present.to(device), channels).float().cpu()

        def own(share: range) -> Iterator[tuple[Tensor, ...]]:
            with Prefetcher(stream, [chunks[number] for number in share]) as batches:
                for batch in batches:
                    source = torch.zeros_like(batch.item) if batch.source is None else batch.source
                    yield embed(batch), batch.labels[self._config.task][:, 0], source

        return work.each(f"epochs of {split}", [length for _, length in chunks], own)

    def _joined(self, split: str, chunks: list[tuple[Tensor, ...]]) -> Embedded:
        """All of them on the CPU."""
        rows, truth, source = (torch.cat(column) for column in zip(*chunks, strict=True))
        if len(truth.unique()) < 2:
            raise DatasetError(
                f"{self._origin}: {len(truth)} epochs of split {split!r} have fewer than two classes of "
                f"{self._config.task!r}, so the encoder cannot be probed; build from more subjects"
            )
        return rows, truth, source


def _kappa(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Cohen's kappa; 0 where both sides name one class only (agreement by chance is then all there is)."""
    from sklearn.metrics import cohen_kappa_score

    if len(np.union1d(truth, predicted)) < 2:
        return 0.0
    return float(cohen_kappa_score(truth, predicted))
