"""Linear probes on a data set's embeddings, from all of its labels or a share of them: which pair of learning rate and weight
decay is best, and what is reached from fewer labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.config import digest, to_dict
from sleepfm.data.mixed_stream import MixedStream, streams_of
from sleepfm.data.mixture import DataSource, Mixture
from sleepfm.data.stream import Noise
from sleepfm.errors import EmptySplitError
from sleepfm.evaluation.prediction_figures import epoch_threshold
from sleepfm.files import read_json, write_json
from sleepfm.models.downstream import Downstream
from sleepfm.stages.classification_loss import class_weights
from sleepfm.stages.downstream_config import LabelledData, ProbeConfig
from sleepfm.stages.embedded_epochs import EmbeddedEpochs, EmbeddingStream
from sleepfm.stages.label_curve import Point, confusion_by_person
from sleepfm.stages.label_draw import LabelDraw
from sleepfm.stages.linear_grid import Tried, best_of, figures_of, predictions_of, train_heads
from sleepfm.tasks import TASKS
from sleepfm.training.ranks.shared_work import SharedWork
from sleepfm.training.schedule import steps_of

# Embeddings [E, D] by recording, of every source that has any.
Nights = Sequence[tuple[DataSource, Mapping[str, Tensor]]]
Labelled = EmbeddingStream | MixedStream
# Of `train`, what a linear head learns by beside its own rate and decay.
_OF_HEADS = frozenset({"steps", "passes", "global_batch", "final_lr", "schedule", "warmup", "betas", "seed"})


class LinearProbes:
    """Linear heads for the task of ``config`` on embeddings of ``mixture``; ``module``, which has not been trained yet, says what
    they start from, and which epochs are assessed.
    """

    def __init__(self, config: ProbeConfig, mixture: Mixture, module: Downstream, work: SharedWork) -> None:
        self._config, self._mixture, self._module, self._work = config, mixture, module, work
        self._task = TASKS[config.task]
        # A copy: the head of ``module`` learns from all labels before a curve of few is measured.
        self._start = copy.deepcopy(module.head.layers)

    def stream(self, nights: Nights, draw: LabelDraw) -> Labelled:
        """The labelled epochs of ``nights`` that ``draw`` leaves, as items."""
        by_source = {source.name: found for source, found in nights}

        def make(source: DataSource, seed: int, noise: Noise | None) -> EmbeddingStream:
            epochs = self._epochs(source, by_source.get(source.name, {}), draw)
            return EmbeddingStream(epochs, self._task.name, seed, str(source.dataset.path))

        return self._mixture.in_memory(make, self._config.train.seed, gaps=bool(draw.drawn))

    def joined(self, nights: Nights, draw: LabelDraw) -> EmbeddedEpochs:
        """The same of all sources together."""
        by_source = {source.name: found for source, found in nights}
        found = self._mixture.where_not_empty(lambda source: self._epochs(source, by_source.get(source.name, {}), draw))
        return EmbeddedEpochs.joined([epochs for _, epochs in found])

    def _epochs(self, source: DataSource, nights: Mapping[str, Tensor], draw: LabelDraw) -> EmbeddedEpochs:
        dataset, task = source.dataset, self._task.name
        kept = draw.rows(dataset)
        if kept is not None:
            nights = {name: night for name, night in nights.items() if dataset.index_of(name) in kept}
        if not nights:
            raise EmptySplitError(f"{dataset.path}: no drawn recording has labels of task {task!r}; raise data.label_fraction")

        def person(row: int) -> str:
            return self._mixture.person(source, row)

        return EmbeddedEpochs.of(dataset, nights, draw.labels(dataset), task, person, self._module.evidence, self._work.goes_on)

    def weights(self, stream: Labelled) -> Tensor:
        """Of the classes, by the labels of ``stream``."""
        labels = torch.cat([part.labels for part in streams_of(stream)])
        return class_weights(labels, len(self._task.classes), self._config.weighting)

    def _heads(self, stream: Labelled) -> list[nn.Linear]:
        """One for every pair that is tried."""
        start, train = self._start, self._config.train
        assert isinstance(start, nn.Linear)
        pairs, steps, weights = self._config.tried(), steps_of(train, len(stream)), self.weights(stream)
        return train_heads(stream, self._task.name, pairs, start, train, steps, weights, self._work.device, self._work.goes_on)

    def _figures(self, heads: Sequence[nn.Linear], val: EmbeddedEpochs) -> list[Tried]:
        return figures_of(self._task, self._config.registry.metric, self._config.tried(), heads, val)

    def tried(self, stream: Labelled, validation: Nights, draw: LabelDraw, embeddings: Sequence[str]) -> list[Tried]:
        """Every pair with its figure on ``validation``. Every rank calls this; rank 0 alone trains.

        It is kept beside the embeddings, whose names are ``embeddings``: a run that goes on, on whatever number of ranks, finds
        what it has chosen.
        """
        path = Path(self._config.cache) / "grids" / f"{self._settings(draw, embeddings)}.json"

        def work() -> list[dict[str, Any]]:
            try:
                known = read_json(path)
            except ValueError:
                # Damaged: tried again.
                known = None
            if known is None:
                found = self._figures(self._heads(stream), self.joined(validation, draw))
                known = [each.to_plain() for each in found]
                write_json(path, known)
            return list(known)

        return [Tried.from_plain(each) for each in self._work.on_main(work)]

    def _settings(self, draw: LabelDraw, embeddings: Sequence[str]) -> str:
        """Digest of all that decides what the pairs reach."""
        config = self._config
        train = {name: value for name, value in to_dict(config.train).items() if name in _OF_HEADS}
        known = {
            "embeddings": list(embeddings),
            "data": [self._mixture.digest.mixture, draw.measure()],
            "task": [repr(self._task), config.weighting, config.registry.metric],
            "grid": [list(pair) for pair in config.tried()],
            "train": train,
        }
        return digest(known)[:32]

    def point(self, data: LabelledData, label: Nights, val: Nights, test: EmbeddedEpochs) -> Point:
        """What is reached on ``test`` from the labels that ``data`` leaves of ``label`` and ``val``."""
        draw = LabelDraw(self._mixture, self._task.name, data, self._work.goes_on)
        stream, held = self.stream(label, draw), self.joined(val, draw)
        heads = self._heads(stream)
        best = best_of(self._figures(heads, held))
        threshold = epoch_threshold(self._task, predictions_of(heads[best], held)).value
        parts = [part.epochs for part in streams_of(stream)]
        rate, decay = self._config.tried()[best]
        return Point(
            data,
            people=len(set().union(*(part.people_with_labels() for part in parts))),
            epochs=sum(map(len, parts)),
            val_people=len(held.people_with_labels()),
            val_epochs=len(held),
            missing=draw.drawn["label"].missing if draw.drawn else (),
            lr=rate,
            weight_decay=decay,
            confusion=confusion_by_person(self._task, predictions_of(heads[best], test), threshold),
        )
