"""The probe: a head trained on the embeddings of a frozen, registered encoder.

The encoder sees each epoch once; from then on a step costs only the head. What is registered is encoder and
head together, so that it scores a night by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixed_stream import MixedStream, streams_of
from sleepfm.data.mixture import DataSource
from sleepfm.data.order import permutation
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, epochs_with_any
from sleepfm.data.stream import Noise
from sleepfm.errors import EmptySplitError
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import predict_embedded_nights
from sleepfm.models.downstream import Downstream
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.classification_loss import class_weights, classification_loss
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.stages.downstream_package import label_rule, package_contents
from sleepfm.stages.downstream_setup import downstream_plan, starting_point, training_labels
from sleepfm.stages.embedding_cache import EmbeddingCache
from sleepfm.stages.people import people_of_downstream
from sleepfm.stages.shared_predictions import figures_by_source, joined_predictions, shared_predictions
from sleepfm.tasks import TASKS
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export, StepLoss

# Embeddings [E, D] by recording, of every source that has any.
Nights = Sequence[tuple[DataSource, Mapping[str, Tensor]]]


class Probe(Downstream):
    """A :class:`Downstream` whose forward starts from embeddings [B, L, D], with the same weights and names."""

    def forward(self, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Logits [B, L, K]."""
        return self.classify(embedding)


class EmbeddingStream:
    """Labelled epochs as items, embedding and label, in the order of a permutation of (seed, pass).

    ``nights`` are embeddings [E, D] by recording; epochs without a label in ``labels`` or without a channel
    are left out, and those without one of ``evidence`` (:attr:`Downstream.evidence`). ``goes_on`` is called with every recording
    whose labels were read.
    """

    def __init__(
        self,
        dataset: Dataset,
        nights: Mapping[str, Tensor],
        labels: RecordLabels,
        task: str,
        seed: int,
        goes_on: Callable[[], None],
        evidence: Sequence[str] = (),
    ) -> None:
        reader = ShardReader(dataset)
        self._task, self._seed = task, seed
        self._names = list(nights)
        embeddings, targets, epochs, night = [], [], [], []
        for number, (name, embedding) in enumerate(nights.items()):
            row = dataset.index_of(name)
            target = torch.from_numpy(labels.of(row)[task].astype(np.int64))
            seen = torch.from_numpy(epochs_with_any(dataset, reader, row, evidence))
            kept = torch.nonzero((target >= 0) & seen & torch.isfinite(embedding).all(dim=1))[:, 0]
            embeddings.append(embedding[kept])
            targets.append(target[kept])
            epochs.append(kept)
            night.append(torch.full_like(kept, number))
            goes_on()
        self._embedding, self.labels = torch.cat(embeddings), torch.cat(targets)
        self._epoch, self._night = torch.cat(epochs), torch.cat(night)
        if not len(self):
            raise EmptySplitError(f"{dataset.path}: no epoch of split 'label' has a label for task {task!r}")
        self._order = lru_cache(2)(lambda number: permutation(len(self), seed, number))

    def __len__(self) -> int:
        """Labelled epochs, the items of one pass."""
        return len(self.labels)

    def batch(self, start: int, count: int) -> Batch:
        """Items ``start`` to ``start + count`` of the infinite sequence; ``signals`` are embeddings [B, 1,
        D].
        """
        position = np.arange(start, start + count)
        row = torch.tensor([self._order(p // len(self))[p % len(self)] for p in position.tolist()])
        ones = torch.ones(count, 1, dtype=torch.bool)
        return Batch(
            signals=self._embedding[row][:, None],
            present=ones,
            valid=ones,
            labels={self._task: self.labels[row][:, None]},
            item=torch.from_numpy(position),
            record=[self._names[number] for number in self._night[row].tolist()],
            first_epoch=self._epoch[row],
        )


class ProbeStage:
    """The training job of one probe, for :func:`sleepfm.training.engine.train`.

    Construct it on every rank after the process group has started: the ranks share the ``work`` of embedding.
    ``source`` is the package of the encoder. With ``on_paper`` nothing is embedded, and only shapes are right.

    Raises:
        RegistryError: the encoder's bytes have changed.
        DatasetError: an empty split, or no labelled epoch.
        ConfigError: the encoder is a downstream model.
    """

    epochs_per_item = 1

    def __init__(self, config: ProbeConfig, source: Resolved, work: SharedWork, on_paper: bool = False) -> None:
        self.config, self.task = config, TASKS[config.task]
        self.name = f"probe-{config.task}"
        self.mixture = config.data.open()
        self.dataset_digest = self.mixture.digest
        self.parents = [source.label]
        package = load_package(source)
        self.people = people_of_downstream(config, self.mixture.datasets, package)
        self.module = _build(config, package.module, source)
        if self.task.kind == "binary":
            label_rule(self.mixture)
        self._caches = {
            source.name: EmbeddingCache(
                Path(config.cache),
                source.dataset,
                self.module.encoder,
                package.config["weights"]["sha256"],
                config.evaluate.chunk,
                work,
                on_paper,
            )
            for source in self.mixture.sources
        }
        self.stream = self._stream(work)
        self.validation = self._nights("val")
        self.mixture.select("test", self.module.channels)
        self._validated: Predictions | None = None
        labels = torch.cat([part.labels for part in streams_of(self.stream)])
        self.n_labelled = len(labels)
        self.weights = class_weights(labels, len(self.task.classes), config.weighting)

    def _stream(self, work: SharedWork) -> EmbeddingStream | MixedStream:
        config = self.config

        def make(source: DataSource, seed: int, noise: Noise | None) -> EmbeddingStream:
            nights, labels = self._caches[source.name].split("label"), training_labels(source.dataset, config.task, config.data)
            return EmbeddingStream(source.dataset, nights, labels, config.task, seed, work.goes_on, self.module.evidence)

        return self.mixture.in_memory(make, config.train.seed)

    def _nights(self, split: str) -> Nights:
        return self.mixture.where_not_empty(lambda source: self._caches[source.name].split(split))

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        """Cross-entropy of the batch's embeddings; ``seed`` is not used, dropout has its own."""
        self.weights = self.weights.to(batch.signals.device)
        return classification_loss(model(batch.signals), batch.labels[self.config.task], self.weights)

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Headline figures on ``val``."""
        self._validated = found = self._predict(module, "val", self.validation, work)
        return work.on_main(lambda: figures_by_source(self.mixture, self.task, found))

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package of encoder and head; reads ``test``, for the first and only time, if ``final``."""
        assert isinstance(module, Downstream)
        facts = {
            "encoder": self.parents[0],
            "test people seen before": self.people.verdict,
            "dataset": str(self.dataset_digest),
            **self.dataset_digest.tags(),
            "training": f"probe ({self.config.head.kind} head on the frozen encoder)",
            "labelled epochs": self.n_labelled,
            "label fraction": self.config.data.label_fraction,
            "class weighting": self.config.weighting,
        }
        validation = self._predict(module, "val", self.validation, work) if final or not self._validated else self._validated
        test = self._predict(module, "test", self._nights("test"), work) if final else None
        return work.only_on_main(
            lambda: package_contents(self.config, module, self.mixture, folder, validation, test, facts, 1, work.goes_on)
        )

    def _predict(self, module: nn.Module, split: str, nights: Nights, work: SharedWork) -> Predictions:
        """Predictions on ``split``, whose embeddings are ``nights``; on rank 0."""
        model = module
        assert isinstance(model, Downstream)

        def of_source(source: DataSource, found: Mapping[str, Tensor]) -> Predictions:
            dataset = source.dataset
            rows = [dataset.index_of(name) for name in found]
            return shared_predictions(
                work, split, dataset, rows, lambda own: predict_embedded_nights(model, dataset, own, found, window=1)
            )

        return joined_predictions(self.mixture, [(source, of_source(source, found)) for source, found in nights])


def _build(config: ProbeConfig, encoder: nn.Module, source: Resolved) -> Probe:
    """The encoder as it is, and a head freshly drawn from ``train.seed`` on every rank alike."""
    encoder, _ = starting_point(config, encoder, source)
    plan = downstream_plan(config, encoder, source)
    torch.manual_seed(config.train.seed)
    return Probe(plan, encoder)
