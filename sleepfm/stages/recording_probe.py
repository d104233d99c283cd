"""The probe of whole recordings: a head that weighs the epochs of a night, on the embeddings of a frozen, registered encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.data.batch import Batch
from sleepfm.data.mixed_stream import MixedStream, streams_of
from sleepfm.data.mixture import DataSource
from sleepfm.data.order import permutation
from sleepfm.data.stream import Noise
from sleepfm.errors import EmptySplitError
from sleepfm.evaluation.predictions import Predictions
from sleepfm.models.build import model_config
from sleepfm.models.recording import RecordingModel, RecordingModelConfig
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.classification_loss import class_weights, classification_loss
from sleepfm.stages.downstream_config import RecordingProbeConfig
from sleepfm.stages.downstream_setup import pretrained_encoder
from sleepfm.stages.embedding_cache import caches_of
from sleepfm.stages.people import people_of_downstream
from sleepfm.stages.person_values import Values
from sleepfm.stages.recording_results import recording_contents, recording_figures
from sleepfm.tasks import RECORDING_TASKS
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export, StepLoss

TARGET = "target"


class RecordingStream:
    """Recordings as items, in the order of a permutation of (seed, pass): ``signals`` are embeddings [B, L, D], of which
    ``valid`` [B, L] are there, ``labels`` have the ``target`` [B, 1].

    Args:
        nights: embeddings [E, D] by name; nan in epochs without a channel.
        targets: what is to be learnt of each.
        length: epochs of the longest of all sources.
        origin: names the data set.

    Raises:
        EmptySplitError: there is no recording.
    """

    def __init__(self, nights: Mapping[str, Tensor], targets: Sequence[float], length: int, seed: int, origin: str) -> None:
        if not nights:
            raise EmptySplitError(f"{origin}: no recording of split 'label' has a value to learn; give a table in values.file")
        self.nights, self._length = dict(nights), length
        self._names = list(nights)
        self.targets = torch.tensor(targets, dtype=torch.float32)
        self._order = lru_cache(2)(lambda number: permutation(len(self), seed, number))

    def __len__(self) -> int:
        """Recordings, the items of one pass."""
        return len(self._names)

    def batch(self, start: int, count: int) -> Batch:
        """Items ``start`` to ``start + count`` of the infinite sequence."""
        position = np.arange(start, start + count)
        rows = [int(self._order(p // len(self))[p % len(self)]) for p in position.tolist()]
        padded = [as_batch(self.nights[self._names[row]], self._length) for row in rows]
        return Batch(
            signals=torch.cat([embedding for embedding, _ in padded]),
            present=torch.ones(count, 1, dtype=torch.bool),
            valid=torch.cat([valid for _, valid in padded]),
            labels={TARGET: self.targets[rows][:, None]},
            item=torch.from_numpy(position),
            record=[self._names[row] for row in rows],
            first_epoch=torch.zeros(count, dtype=torch.int64),
        )


def as_batch(night: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings [E, D] of a night as [1, length, D], of its own length by default, with the epochs [1, length] that have one."""
    valid = night.isfinite().all(1)
    size = length or len(night)
    embedding, there = torch.zeros(1, size, night.shape[1]), torch.zeros(1, size, dtype=torch.bool)
    embedding[0, : len(night)] = night.masked_fill(~valid[:, None], 0)
    there[0, : len(night)] = valid
    return embedding, there


class RecordingProbeStage:
    """The training job of one probe of recordings, for :func:`sleepfm.training.engine.train`.

    Construct it on every rank after the process group has started: the ranks share the ``work`` of embedding. ``source`` is the
    package of the encoder. With ``on_paper`` nothing is embedded, and only shapes are right.

    Raises:
        RegistryError: the encoder's bytes have changed.
        DatasetError: an empty split, or one of whose recordings nothing is known.
        SubjectTableError: see :class:`Values`.
        LeakageError: a person of ``test`` was seen before.
        ConfigError: the encoder is no pretrained encoder.
    """

    epochs_per_item = 1

    def __init__(self, config: RecordingProbeConfig, source: Resolved, work: SharedWork, on_paper: bool = False) -> None:
        self.config, self.task = config, RECORDING_TASKS[config.task]
        self.name = f"probe-{config.task}"
        self.mixture = config.data.open()
        self.dataset_digest = self.mixture.digest
        self.parents = [source.label]
        package = load_package(source)
        self.people = people_of_downstream(config, self.mixture.datasets, package)
        self.values = Values.of(self.task, config.values)
        self.values.check(self.mixture)
        encoder = pretrained_encoder(package.module, source)
        task = self.task
        plan = RecordingModelConfig(
            task=task.name, classes=task.classes, unit=task.unit, encoder=model_config(encoder), pool=config.pool
        )
        torch.manual_seed(config.train.seed)
        self.module = RecordingModel(plan, encoder)
        sha256 = package.config["weights"]["sha256"]
        self._caches = caches_of(self.mixture, config.cache, encoder, sha256, config.evaluate.chunk, work, on_paper)
        label, self.validation = self._nights("label"), self._nights("val")
        self._known("test")
        longest = max(len(night) for _, nights in label for night in nights.values())
        self.epochs_per_item = longest
        by_source = {of.name: nights for of, nights in label}

        def make(source: DataSource, seed: int, noise: Noise | None) -> RecordingStream:
            nights, dataset = by_source.get(source.name, {}), source.dataset
            targets = [self.values.target(dataset, dataset.index_of(name)) for name in nights]
            return RecordingStream(nights, targets, longest, seed, str(dataset.path))

        # Of the people of some sources nothing may be known.
        self.stream: RecordingStream | MixedStream = self.mixture.in_memory(make, config.train.seed, gaps=True)
        parts = streams_of(self.stream)
        self.targets = torch.cat([part.targets for part in parts])
        if not on_paper:
            self._standardise(parts)
        self.weights = class_weights(self.targets.long(), len(task.classes), config.weighting) if task.classes else torch.ones(1)
        self._validated: Predictions | None = None

    def _known(self, split: str) -> list[tuple[DataSource, frozenset[int]]]:
        """The recordings of ``split`` of which something is known, by source. Raises :class:`EmptySplitError`: of none."""

        def of(source: DataSource) -> frozenset[int]:
            dataset = source.dataset
            rows = dataset.select(split, self.module.channels).tolist()
            known = frozenset(row for row in rows if not math.isnan(self.values.target(dataset, row)))
            if not known:
                raise EmptySplitError(
                    f"{dataset.origin}: nobody in split {split!r} has a value of {self.values.told}; build from more people"
                )
            return known

        return self.mixture.where_not_empty(of)

    def _nights(self, split: str) -> list[tuple[DataSource, dict[str, Tensor]]]:
        """Embeddings [E, D] of these, by name; without a night that has no usable epoch. Every rank calls this."""
        found = []
        for source, rows in self._known(split):
            nights = self._caches[source.name].split(split, rows)
            found.append((source, {name: night for name, night in nights.items() if night.isfinite().all(1).any()}))
        return found

    def _standardise(self, parts: Sequence[RecordingStream]) -> None:
        """By the recordings that are learnt from: their embeddings, and the numbers."""
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for night in (night for part in parts for night in part.nights.values()):
            rows = night[night.isfinite().all(1)].double()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        module = self.module
        module.mean.copy_(mean)
        # A feature that is constant is only centred.
        module.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1.0), std, 1.0))
        if not self.task.classes:
            module.centre.copy_(self.targets.mean())
            spread = self.targets.std(correction=0)
            module.spread.copy_(spread if spread > 0 else torch.ones(()))

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        """Cross-entropy of the classes, or the squared error of the standardised numbers; ``seed`` is not used."""
        found, target = model(batch.signals, batch.valid), batch.labels[TARGET]
        if self.task.classes:
            self.weights = self.weights.to(found.device)
            return classification_loss(found[:, None], target.long(), self.weights)
        aim = (target - self.module.centre.to(target.device)) / self.module.spread.to(target.device)
        each = F.mse_loss(found.float(), aim, reduction="none")[:, 0]
        return StepLoss(each.mean(), {}, each.detach())

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Headline figures on ``val``."""
        self._validated = found = self._predict(module, "val", self.validation, work)
        return work.on_main(lambda: recording_figures(self.task, found, self.baseline))

    @property
    def baseline(self) -> float:
        """What names who has learnt nothing: the median of the numbers; nan of classes."""
        return math.nan if self.task.classes else float(self.targets.median())

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package of encoder and head; reads ``test``, for the first and only time, if ``final``."""
        assert isinstance(module, RecordingModel)
        people = {person for part in self._people_of_stream() for person in part}
        facts = {
            "encoder": self.parents[0],
            "test people seen before": self.people.verdict,
            "dataset": str(self.dataset_digest),
            **self.dataset_digest.tags(),
            "training": f"probe of recordings (attention of {self.config.pool.heads} on the frozen encoder)",
            "learnt": self.values.told,
            "recordings": len(self.targets),
            "people": len(people),
            "class weighting": self.config.weighting if self.task.classes else "none",
        }
        validation = self._predict(module, "val", self.validation, work) if final or not self._validated else self._validated
        test = self._predict(module, "test", self._nights("test"), work) if final else None
        return work.only_on_main(
            lambda: recording_contents(self.config, self.task, module, folder, validation, test, facts, self.baseline)
        )

    def _people_of_stream(self) -> Iterable[set[str]]:
        for source, rows in self._known("label"):
            yield {self.mixture.person(source, row) for row in rows}

    def _predict(
        self, module: nn.Module, split: str, nights: Sequence[tuple[DataSource, Mapping[str, Tensor]]], work: SharedWork
    ) -> Predictions:
        """What ``module`` says of ``nights`` of ``split``, one row each, on rank 0: probabilities of classes, or the number."""
        assert isinstance(module, RecordingModel)
        rows = [(source, name, night) for source, found in nights for name, night in found.items()]
        device = next(module.parameters()).device

        def own(share: range) -> Iterable[tuple[Tensor, ...]]:
            for number in share:
                yield (module.of_night(rows[number][2].to(device)).cpu(),)

        found = work.each(f"recordings of {split}", [len(night) for *_, night in rows], own)
        if not work.world.is_main:
            return Predictions.none()
        record = [self.mixture.label(source, name) for source, name, _ in rows]
        people = [self.mixture.person(source, source.dataset.index_of(name)) for source, name, _ in rows]
        truth = np.array([self.values.target(source.dataset, source.dataset.index_of(name)) for source, name, _ in rows])
        return Predictions(
            np.array(record, dtype=object),
            np.array(people, dtype=object),
            np.zeros(len(rows), np.int64),
            truth.astype(np.int64) if self.task.classes else truth,
            torch.stack([value for (value,) in found]).double().numpy(),
        )
