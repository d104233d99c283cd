"""The fine-tune: a registered encoder with low-rank updates, temporal context over consecutive epochs, and a
head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.constants import CHANNEL_MODALITY, EPOCH_SECONDS
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import DataSource
from sleepfm.data.stream import Noise, SequenceStream
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import NightPrediction, predict_embedded_nights, predict_encoded_nights, predict_nights
from sleepfm.models.downstream import Downstream
from sleepfm.models.modality_dropout import drop_channels, drop_modalities
from sleepfm.models.noise import noise_for
from sleepfm.models.random_filter import KNOTS_HZ, filtered
from sleepfm.models.saturation import LEVELS
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.classification_loss import class_weights, classification_loss
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.downstream_package import label_rule, package_contents
from sleepfm.stages.downstream_setup import downstream_plan, labels_of_split, starting_point
from sleepfm.stages.embedding_cache import EmbeddingCache, FrameCache
from sleepfm.stages.encoded_nights import EncodedStream, OnFrames
from sleepfm.stages.label_draw import LabelDraw
from sleepfm.stages.layer_rates import layer_rates
from sleepfm.stages.people import people_of_downstream
from sleepfm.stages.second_labels import KINDS, SECONDS, SecondLabels, SecondsStream
from sleepfm.stages.shared_predictions import figures_by_source, joined_predictions, shared_predictions
from sleepfm.tasks import TASKS
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export, StepLoss, Stream
from sleepfm.training.state.weights import state_digest


class FinetuneStage:
    """The training job of one fine-tune, for :func:`sleepfm.training.engine.train`.

    ``source`` is the package of the encoder.

    Raises:
        RegistryError: the encoder's bytes have changed.
        DatasetError: an empty split, or no labelled epoch.
        ConfigError: the encoder is a downstream model.
    """

    def __init__(self, config: FinetuneConfig, source: Resolved, work: SharedWork = ALONE, on_paper: bool = False) -> None:
        self.config, self.task = config, TASKS[config.task]
        self.name = f"finetune-{config.task}"
        self.epochs_per_item = config.sequence.length
        self.mixture = config.data.open()
        self.dataset_digest = self.mixture.digest
        self.parents = [source.label]
        package = load_package(source)
        self.people = people_of_downstream(config, self.mixture.datasets, package)
        encoder, context = starting_point(config, package.module, source)
        plan = downstream_plan(config, encoder, source)
        torch.manual_seed(config.train.seed)
        self.module = (OnFrames if config.cache else Downstream)(plan, encoder)
        if context is not None:
            self.module.context.load_state_dict(context)
        self._rates = layer_rates(self.module, config.layer_decay) if config.layer_decay < 1 else lambda name: 1.0
        if self.task.kind == "binary":
            label_rule(self.mixture)
        self._kinds = config.events.kinds if config.events is not None else ()
        # 0 for a channel in absolute units.
        self._waves = torch.tensor([float(name not in LEVELS) for name in self.module.channels])
        self.draw = LabelDraw(self.mixture, config.task, config.data, work.goes_on)
        if work.world.is_main:
            self.draw.warn_of_missing()
        gaps = bool(self.draw.drawn)
        # Of each source by its name; none where signals pass through the encoder in every step.
        self._caches: dict[str, EmbeddingCache] = {}
        if config.cache:
            settings = (package.config["weights"]["sha256"], config.evaluate.chunk, work, on_paper)
            self._caches = {of.name: self._cache(Path(config.cache), of.dataset, *settings) for of in self.mixture.sources}
            self.stream: Stream = self.mixture.in_memory(self._of_encoded, config.train.seed, gaps=gaps)
        else:
            noise = partial(noise_for, shape=(3 + len(KNOTS_HZ), len(self.module.channels)), seed=config.train.seed)
            drawn = noise if config.is_varied() else None
            self.stream = self.mixture.stream(self._of_data_set, config.data.reading(config.train.seed), drawn, gaps=gaps)
        self.draw.select("val", self.module.channels)
        self.mixture.select("test", self.module.channels)
        self._weigh(work)
        self._validated: tuple[str, Predictions] | None = None

    def _of_data_set(self, dataset: Dataset, **shared: Any) -> SequenceStream:
        """Sequences of signals, which pass through the encoder in every step."""
        config = self.config
        stream: Callable[..., SequenceStream] = SequenceStream
        if config.events is not None:
            stream = partial(SecondsStream, seconds=SecondLabels(dataset, config.task), kinds=self._kinds)
        return stream(
            dataset,
            "label",
            self.module.channels,
            length=config.sequence.length,
            stride=config.sequence.stride,
            label_fraction=self.draw.epoch_fraction,
            label_seed=config.data.label_seed,
            label_rows=self.draw.rows(dataset),
            labels=(config.task,),
            target=config.task,
            labelled_only=True,
            **shared,
        )

    def _cache(self, folder: Path, dataset: Dataset, *settings: Any) -> EmbeddingCache:
        """Of frames where an event head sees them, else of embeddings, which the probe keeps in the same way."""
        if self.config.events is not None:
            return FrameCache(folder, dataset, self.module, *settings)
        return EmbeddingCache(folder, dataset, self.module.encoder, *settings)

    def _as_frames(self, night: Tensor) -> Tensor:
        """What a cache holds of a night as features of frames: an embedding is the mean of its frames, and so of one."""
        return night if self.config.events is not None else night[:, None]

    def _of_encoded(self, source: DataSource, seed: int, noise: Noise | None) -> EncodedStream:
        """Sequences of epochs that have passed through it."""
        config, dataset = self.config, source.dataset
        nights = self._caches[source.name].split("label", self.draw.rows(dataset))
        return EncodedStream(
            dataset,
            {name: self._as_frames(night) for name, night in nights.items()},
            self.draw.labels(dataset),
            SecondLabels(dataset, config.task) if config.events is not None else None,
            config.task,
            config.sequence,
            self._kinds,
            self.module.evidence,
            seed,
        )

    def _weigh(self, work: SharedWork) -> None:
        """Weights of classes by the labels of all sources, and of seconds by theirs."""
        config = self.config
        labels, every = [], []
        for source, rows in self.mixture.select("label"):
            kept = self.draw.labels(source.dataset)
            labels.append(torch.from_numpy(labels_of_split(source.dataset, kept, "label", config.task, work.goes_on)))
            if config.events is not None:
                seconds = SecondLabels(source.dataset, config.task)
                every += [seconds.of(row, kept.of(row)) for row in rows.tolist()]
        scored = torch.cat(labels)
        self.n_labelled = int((scored >= 0).sum())
        self.weights = class_weights(scored, len(self.task.classes), config.weighting)
        if config.events is not None:
            self.second_weights = class_weights(torch.cat(every), 2, config.weighting)
            self.kind_weights = torch.ones(max(1, len(self._kinds)))

    def rate_of(self, name: str) -> float:
        """Factor of ``train.lr``, by the layer of the parameter ``name``."""
        return self._rates(name)

    @property
    def weight_decay(self) -> float:
        """As the configuration says."""
        return self.config.train.weight_decay

    def measure(self, metric: str) -> Mapping[str, Any]:
        """Which labels of ``val`` were drawn, if not all."""
        return self.draw.measure()

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        """Cross-entropy of every scored epoch of the sequences, and of every scored second where there is an event head;
        ``seed`` is not used, dropout has its own.
        """
        self._move_weights(batch.present.device)
        if batch.noise is not None:
            batch = self._varied(batch, batch.noise)
        # Nothing is learnt of an epoch that is not assessed.
        seen = batch.present[..., 0] if self._caches else self.module.assessed(batch.present)
        epochs, events = batch.labels[self.config.task].masked_fill(~seen, -1), self.config.events
        if events is None:
            return classification_loss(model(batch.signals, batch.present, batch.valid), epochs, self.weights)
        logits, seconds = model(batch.signals, batch.present, batch.valid)
        every, unseen = seconds.flatten(1, 2), ~seen.repeat_interleave(EPOCH_SECONDS, dim=1)
        whole = classification_loss(logits, epochs, self.weights)
        inside = batch.labels[SECONDS].masked_fill(unseen, -1)
        located = classification_loss(every[..., :2], inside, self.second_weights)
        parts = whole.parts | {"seconds": located.loss.detach(), "seconds_accuracy": located.parts["accuracy"]}
        assert whole.items is not None and located.items is not None
        loss, items = whole.loss + events.weight * located.loss, whole.items + events.weight * located.items
        if self._kinds:
            kinds = batch.labels[KINDS].masked_fill(unseen, -1)
            told = classification_loss(every[..., 2:], kinds, self.kind_weights)
            assert told.items is not None
            parts["kinds"] = told.loss.detach()
            loss, items = loss + events.weight * told.loss, items + events.weight * told.items
        return StepLoss(loss, parts, items)

    def _varied(self, batch: Batch, noise: Tensor) -> Batch:
        """``batch`` as other recordings of the same sleep might be, by ``noise`` ``[B, 3 + K, C]``: without some modalities, but
        never one that the task needs, without some of the channels of the others, through another filter, and at another scale,
        which hangs on what else was recorded. The same for all of a sequence.
        """
        config, channels = self.config, self.module.channels
        needed = {CHANNEL_MODALITY[name] for name in self.module.evidence}
        present = drop_modalities(batch.present, noise[:, None, 0], channels, config.modality_dropout, needed)
        present = drop_channels(present, noise[:, None, 2], channels, config.channel_dropout)
        factors = config.gain ** ((2 * noise[:, 1] - 1) * self._waves)  # [B, C]
        signals = batch.signals * factors[:, None, :, None]
        if config.filter_db:
            signals = filtered(signals, noise[:, 3:], config.filter_db * self._waves)
        return replace(batch, present=present, signals=signals)

    def _move_weights(self, device: torch.device) -> None:
        """Weights of classes and channels, once, to where the loss is computed."""
        self.weights, self._waves = self.weights.to(device), self._waves.to(device)
        if self.config.events is not None:
            self.second_weights, self.kind_weights = self.second_weights.to(device), self.kind_weights.to(device)

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Headline figures on ``val``, every epoch once."""
        found = self._validation(module, work)
        return work.on_main(lambda: figures_by_source(self.mixture, self.task, found))

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package of encoder, context and head; reads ``test``, for the first and only time, if ``final``."""
        assert isinstance(module, Downstream)
        tune, context = self.config.tune, self.config.context
        facts = {
            "encoder": self.parents[0],
            "test people seen before": self.people.verdict,
            "dataset": str(self.dataset_digest),
            **self.dataset_digest.tags(),
            "training": f"fine-tune (encoder {tune.mode}, context {context.kind})",
            "labelled epochs": self.n_labelled,
            "label fraction": self.config.data.label_fraction,
            **self.draw.facts(),
            "class weighting": self.config.weighting,
        } | ({"events": "per-second head"} if self.config.events is not None else {})
        validation = self._validation(module, work)
        test = self._predict(module, "test", work) if final else None
        window = self.config.sequence.length
        return work.only_on_main(
            lambda: package_contents(self.config, module, self.mixture, folder, validation, test, facts, window, work.goes_on)
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

        def of_source(source: DataSource, rows: list[int]) -> Predictions:
            dataset = source.dataset
            predict: Callable[[Sequence[int]], Iterable[NightPrediction]]
            if self._caches:
                nights = self._caches[source.name].split(split, frozenset(rows))
                if model.events is not None:
                    predict = partial(predict_encoded_nights, model, dataset, nights=nights.__getitem__, window=window)
                else:
                    predict = partial(predict_embedded_nights, model, dataset, nights=nights, window=window)
            else:
                predict = partial(predict_nights, model, dataset, window=window, chunk=chunk, at_chunk=work.goes_on)
            found = shared_predictions(work, f"recordings of {split}", dataset, rows, predict, model.config.kinds)
            return self.draw.in_proportion(dataset, found) if split == "val" else found

        chosen: Iterable[tuple[DataSource, Sequence[int]]]
        if split == "val":
            chosen = self.draw.select(split, model.channels)
        else:
            chosen = [(source, rows.tolist()) for source, rows in self.mixture.select(split, model.channels)]
        return joined_predictions(self.mixture, [(source, of_source(source, [*rows])) for source, rows in chosen])
