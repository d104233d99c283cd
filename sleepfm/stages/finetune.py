"""The fine-tune: a registered encoder with low-rank updates, temporal context over consecutive epochs, and a
head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.stream import SequenceStream
from sleepfm.evaluation.prediction_figures import validation_figures
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import predict_nights
from sleepfm.models.downstream import Downstream
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.classification_loss import class_weights, classification_loss
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.downstream_package import package_contents
from sleepfm.stages.downstream_setup import downstream_plan, labels_of_split, starting_point, training_labels
from sleepfm.stages.people import people_of_downstream
from sleepfm.stages.second_labels import SECONDS, SecondLabels, SecondsStream
from sleepfm.stages.shared_predictions import shared_predictions
from sleepfm.tasks import TASKS
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export, StepLoss
from sleepfm.training.state.weights import state_digest


class FinetuneStage:
    """The training job of one fine-tune, for :func:`sleepfm.training.engine.train`.

    ``source`` is the package of the encoder.

    Raises:
        RegistryError: the encoder's bytes have changed.
        DatasetError: an empty split, or no labelled epoch.
        ConfigError: the encoder is a downstream model.
    """

    def __init__(self, config: FinetuneConfig, source: Resolved, work: SharedWork = ALONE) -> None:
        self.config, self.task = config, TASKS[config.task]
        self.name = f"finetune-{config.task}"
        self.epochs_per_item = config.sequence.length
        self.dataset = Dataset.open(config.data.path)
        self.dataset_digest = self.dataset.digest
        self.parents = [source.label]
        package = load_package(source)
        self.people = people_of_downstream(config, [self.dataset], package)
        encoder, context = starting_point(config, package.module, source)
        plan = downstream_plan(config, encoder, source)
        torch.manual_seed(config.train.seed)
        self.module = Downstream(plan, encoder)
        if context is not None:
            self.module.context.load_state_dict(context)
        self.seconds = SecondLabels(self.dataset, config.task)
        stream = SequenceStream if config.events is None else partial(SecondsStream, seconds=self.seconds)
        self.stream = stream(
            self.dataset,
            "label",
            self.module.channels,
            length=config.sequence.length,
            stride=config.sequence.stride,
            reading=config.data.reading(config.train.seed),
            label_fraction=config.data.label_fraction,
            label_seed=config.data.label_seed,
            labels=(config.task,),
            target=config.task,
            labelled_only=True,
        )
        for split in ("val", "test"):
            self.dataset.select(split, self.module.channels)
        kept = training_labels(self.dataset, config.task, config.data)
        labels = torch.from_numpy(labels_of_split(self.dataset, kept, "label", config.task, work.goes_on))
        self.n_labelled = int((labels >= 0).sum())
        self.weights = class_weights(labels, len(self.task.classes), config.weighting)
        self._validated: tuple[str, Predictions] | None = None
        if config.events is not None:
            every = torch.cat([self.seconds.of(row, kept.of(row)) for row in self.dataset.select("label").tolist()])
            self.second_weights = class_weights(every, 2, config.weighting)

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        """Cross-entropy of every scored epoch of the sequences, and of every scored second where there is an event head;
        ``seed`` is not used, dropout has its own.
        """
        epochs, events = batch.labels[self.config.task], self.config.events
        self._move_weights(epochs.device)
        if events is None:
            return classification_loss(model(batch.signals, batch.present, batch.valid), epochs, self.weights)
        logits, seconds = model(batch.signals, batch.present, batch.valid)
        whole = classification_loss(logits, epochs, self.weights)
        located = classification_loss(seconds.flatten(1, 2), batch.labels[SECONDS], self.second_weights)
        parts = whole.parts | {"seconds": located.loss.detach(), "seconds_accuracy": located.parts["accuracy"]}
        return StepLoss(whole.loss + events.weight * located.loss, parts)

    def _move_weights(self, device: torch.device) -> None:
        """Weights of classes, once, to where the loss is computed."""
        self.weights = self.weights.to(device)
        if self.config.events is not None:
            self.second_weights = self.second_weights.to(device)

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Headline figures on ``val``, every epoch once."""
        found = self._validation(module, work)
        return work.on_main(lambda: validation_figures(self.task, found))

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package of encoder, context and head; reads ``test``, for the first and only time, if ``final``."""
        assert isinstance(module, Downstream)
        tune, context = self.config.tune, self.config.context
        facts = {
            "encoder": self.parents[0],
            "test people seen before": self.people.verdict,
            "dataset": self.dataset.digest,
            "training": f"fine-tune (encoder {tune.mode}, context {context.kind})",
            "labelled epochs": self.n_labelled,
            "label fraction": self.config.data.label_fraction,
            "class weighting": self.config.weighting,
        } | ({"events": "per-second head"} if self.config.events is not None else {})
        validation = self._validation(module, work)
        test = self._predict(module, "test", work) if final else None
        window = self.config.sequence.length
        return work.only_on_main(
            lambda: package_contents(self.config, module, self.dataset, folder, validation, test, facts, window, work.goes_on)
        )

    def _validation(self, module: nn.Module, work: SharedWork) -> Predictions:
        """Predictions on ``val``; the last ones are kept, as a best model is often the one just validated."""
        of = state_digest(module) if work.world.is_main else ""
        known = self._validated if work.on_main(lambda: self._validated is not None and self._validated[0] == of) else None
        if known is None:
            self._validated = known = (of, self._predict(module, "val", work))
        return known[1]

    def _predict(self, module: nn.Module, split: str, work: SharedWork) -> Predictions:
        """Predictions on ``split``; on rank 0."""
        assert isinstance(module, Downstream)
        model, window, chunk = module, self.config.sequence.length, self.config.evaluate.chunk
        rows = self.dataset.select(split, model.channels).tolist()
        return shared_predictions(
            work,
            f"recordings of {split}",
            self.dataset,
            rows,
            lambda own: predict_nights(model, self.dataset, own, window, chunk, at_chunk=work.goes_on),
        )
