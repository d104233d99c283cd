"""The probe: a head trained on the embeddings of a frozen, registered encoder.

The encoder sees each epoch once; from then on a step costs only the head. What is registered is encoder and
head together, so that it scores a night by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.data.batch import Batch
from sleepfm.data.mixed_stream import streams_of
from sleepfm.data.mixture import DataSource
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import predict_embedded_nights
from sleepfm.models.downstream import Downstream
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.classification_loss import classification_loss
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.stages.downstream_package import label_rule, package_contents
from sleepfm.stages.downstream_setup import downstream_plan, starting_point
from sleepfm.stages.embedding_cache import caches_of
from sleepfm.stages.label_curve import draws, measure_curve, write_curve
from sleepfm.stages.label_draw import LabelDraw
from sleepfm.stages.linear_grid import Tried, best_of
from sleepfm.stages.linear_probes import Labelled, LinearProbes, Nights
from sleepfm.stages.people import people_of_downstream
from sleepfm.stages.shared_predictions import figures_by_source, joined_predictions, shared_predictions
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export, StepLoss


class Probe(Downstream):
    """A :class:`Downstream` whose forward starts from embeddings [B, L, D], with the same weights and names."""

    def forward(self, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Logits [B, L, K]."""
        return self.classify(embedding)


class ProbeStage:
    """The training job of one probe, for :func:`sleepfm.training.engine.train`.

    Construct it on every rank after the process group has started: the ranks share the ``work`` of embedding.
    ``source`` is the package of the encoder. With ``on_paper`` nothing is embedded, and only shapes are right.

    Attributes:
        tried: with ``config.grid`` every pair of learning rate and weight decay with its figure on ``val``; the best is
            ``chosen``, which this job learns with.

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
        sha256 = package.config["weights"]["sha256"]
        self._caches = caches_of(self.mixture, config.cache, self.module.encoder, sha256, config.evaluate.chunk, work, on_paper)
        self.draw = LabelDraw(self.mixture, config.task, config.data, work.goes_on)
        if work.world.is_main:
            self.draw.warn_of_missing()
        self._linear = LinearProbes(config, self.mixture, self.module, work)
        self.stream: Labelled = self._linear.stream(self._nights("label", self.draw), self.draw)
        self.validation = self._nights("val", self.draw)
        self.mixture.select("test", self.module.channels)
        self._validated: Predictions | None = None
        self.n_labelled = sum(len(part) for part in streams_of(self.stream))
        self.weights = self._linear.weights(self.stream)
        self.tried: list[Tried] = []
        self.chosen = config.tried()[0]
        if config.grid is not None and not on_paper:
            embeddings = [cache.folder.name for cache in self._caches.values()]
            self.tried = self._linear.tried(self.stream, self.validation, self.draw, embeddings)
            best = self.tried[best_of(self.tried)]
            self.chosen = (best.lr, best.weight_decay)

    def _nights(self, split: str, draw: LabelDraw | None = None) -> Nights:
        """Embeddings of the recordings of ``split``, of those alone whose labels ``draw`` leaves. Every rank calls this."""

        def of(source: DataSource) -> Mapping[str, Tensor]:
            rows = draw.rows(source.dataset) if draw is not None else None
            return self._caches[source.name].split(split, rows)

        return self.mixture.where_not_empty(of)

    def rate_of(self, name: str) -> float:
        """Factor of ``train.lr``: that of the pair that was chosen."""
        return self.chosen[0] / self.config.train.lr

    @property
    def weight_decay(self) -> float:
        """That of the pair that was chosen."""
        return self.chosen[1]

    def measure(self, metric: str) -> Mapping[str, Any]:
        """Which labels of ``val`` were drawn, if not all."""
        return self.draw.measure()

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        """Cross-entropy of the batch's embeddings; ``seed`` is not used, dropout has its own."""
        self.weights = self.weights.to(batch.signals.device)
        return classification_loss(model(batch.signals), batch.labels[self.config.task], self.weights)

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Headline figures on ``val``."""
        self._validated = found = self._predict(module, "val", self.validation, work)
        return work.on_main(lambda: figures_by_source(self.mixture, self.task, found))

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package of encoder and head; reads ``test``, for the first and only time, if ``final``, and then measures the
        learning curve that is asked for.
        """
        assert isinstance(module, Downstream)
        facts = {
            "encoder": self.parents[0],
            "test people seen before": self.people.verdict,
            "dataset": str(self.dataset_digest),
            **self.dataset_digest.tags(),
            "training": f"probe ({self.config.head.kind} head on the frozen encoder)",
            "labelled epochs": self.n_labelled,
            "label fraction": self.config.data.label_fraction,
            **self.draw.facts(),
            "class weighting": self.config.weighting,
        }
        more: dict[str, Any] = {}
        if self.tried:
            rate, decay = self.chosen
            facts["learning rate, weight decay"] = f"{rate:g}, {decay:g} (best of {len(self.tried)} pairs on val)"
            more["grid"] = {"metric": self.config.registry.metric, "tried": [each.to_plain() for each in self.tried]}
        validation = self._predict(module, "val", self.validation, work) if final or not self._validated else self._validated
        test = self._predict(module, "test", self._nights("test"), work) if final else None
        if final and self.config.curve is not None:
            self._measure_curve(RunFolder(folder).label_curve, work)
        return work.only_on_main(
            lambda: package_contents(self.config, module, self.mixture, folder, validation, test, facts, 1, work.goes_on, more)
        )

    def _measure_curve(self, path: Path, work: SharedWork) -> None:
        curve = self.config.curve
        assert curve is not None
        label, val, test = (self._nights(split) for split in ("label", "val", "test"))
        held = self._linear.joined(test, self.draw)
        points = measure_curve(draws(self.config.data, curve), work, lambda data: self._linear.point(data, label, val, held))
        work.only_on_main(lambda: write_curve(path, self.task, curve, points, self.config.evaluate))

    def _predict(self, module: nn.Module, split: str, nights: Nights, work: SharedWork) -> Predictions:
        """Predictions on ``split``, whose embeddings are ``nights``; on rank 0. Of ``val`` the labels that were drawn count."""
        model = module
        assert isinstance(model, Downstream)

        def of_source(source: DataSource, found: Mapping[str, Tensor]) -> Predictions:
            dataset = source.dataset
            rows = [dataset.index_of(name) for name in found]
            predictions = shared_predictions(
                work, split, dataset, rows, lambda own: predict_embedded_nights(model, dataset, own, found, window=1)
            )
            return self.draw.in_proportion(dataset, predictions) if split == "val" else predictions

        return joined_predictions(self.mixture, [(source, of_source(source, found)) for source, found in nights])


def _build(config: ProbeConfig, encoder: nn.Module, source: Resolved) -> Probe:
    """The encoder as it is, and a head freshly drawn from ``train.seed`` on every rank alike."""
    encoder, _ = starting_point(config, encoder, source)
    plan = downstream_plan(config, encoder, source)
    torch.manual_seed(config.train.seed)
    return Probe(plan, encoder)
