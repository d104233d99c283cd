"""The optional third pretraining stage: temporal context on the sequence of a night's embeddings, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sleepfm.data.batch import Batch
from sleepfm.data.mixed_stream import MixedStream, streams_of
from sleepfm.data.mixture import DataSource
from sleepfm.data.order import permutation
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import Noise
from sleepfm.data.windows import window_starts
from sleepfm.errors import ConfigError, DatasetError
from sleepfm.models.build import model_config
from sleepfm.models.losses import LossOutput
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.noise import noise_for
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.registry.registry import Package
from sleepfm.stages.embedding_cache import CHUNK, caches_of
from sleepfm.stages.people import people_of_pretraining
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.stage import Export

VALIDATION_BATCH = 8
FIGURE = "val/reconstruction_vs_mean"


class NightStream:
    """Sequences of ``length`` consecutive embeddings of one night, in the order of a permutation of (seed, pass).

    Epochs without any channel are left out of their night, as in scoring. Sequences start every ``length`` epochs; the last
    one ends with the night, and a shorter night is padded at its end.
    """

    def __init__(
        self, nights: Mapping[str, Tensor], length: int, seed: int, noise: Noise | None = None, origin: str = ""
    ) -> None:
        """``nights`` are embeddings [E, D] by recording, nan where there is no channel; ``noise`` draws that of items; ``origin``
        names the data set.
        """
        self._noise = noise
        self._length = length
        self._nights = list(nights.items())
        self._usable = [torch.nonzero(night.isfinite().all(1))[:, 0] for _, night in self._nights]
        self._items = [
            (number, int(start))
            for number, usable in enumerate(self._usable)
            if len(usable)
            for start in window_starts(len(usable), length, length)
        ]
        if not self._items:
            raise DatasetError(
                f"{origin}: no recording has an epoch with a channel of the encoder; give another data set or encoder"
            )
        self._order = lru_cache(2)(lambda number: permutation(len(self._items), seed, number))

    def __len__(self) -> int:
        """Sequences in one pass."""
        return len(self._items)

    def usable(self) -> Iterator[Tensor]:
        """Of every night the embeddings [E, D] of the epochs with a channel."""
        for (_, night), usable in zip(self._nights, self._usable, strict=True):
            yield night[usable]

    def batch(self, start: int, count: int) -> Batch:
        """Items ``start`` to ``start + count`` of the infinite sequence; ``signals`` are embeddings [B, L, D]."""
        position = np.arange(start, start + count)
        chosen = [self._items[self._order(p // len(self))[p % len(self)]] for p in position.tolist()]
        item = torch.from_numpy(position)
        signals = torch.zeros(count, self._length, self._nights[0][1].shape[1])
        valid = torch.zeros(count, self._length, dtype=torch.bool)
        for row, (number, first) in enumerate(chosen):
            rows = self._usable[number][first : first + self._length]
            signals[row, : len(rows)] = self._nights[number][1][rows]
            valid[row, : len(rows)] = True
        return Batch(
            signals=signals,
            present=torch.ones(count, 1, dtype=torch.bool),
            valid=valid,
            labels={},
            item=item,
            record=[self._nights[number][0] for number, _ in chosen],
            first_epoch=torch.tensor([int(self._usable[number][first]) for number, first in chosen]),
            noise=self._noise(item) if self._noise else None,
        )


def statistics(streams: Iterable[NightStream]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of every embedding in ``streams``, gathered night by night in fp64."""
    count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for stream in streams:
        for night in stream.usable():
            rows = night.double()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


class ContextStage:
    """The training job of a masked context on the embeddings of a registered encoder.

    Construct it on every rank after the process group has started: the ranks share the ``work`` of embedding. With ``on_paper``
    nothing is embedded, and only shapes are right.

    Raises:
        DatasetError: an empty split.
        ConfigError: ``package`` is not a pretrained encoder.
    """

    name = "pretrain-context"

    def __init__(self, config: Any, package: Package, work: SharedWork, on_paper: bool = False) -> None:
        assert isinstance(config.model, MaskedContextConfig)
        encoder = package.module
        if not isinstance(encoder, (NeuroNet, SynthSleepNet)):
            raise ConfigError(f"encoder: {package.source.uri} is not a pretrained encoder; give a SynthSleepNet or a NeuroNet")
        self.config = config
        self.parents = [package.source.label]
        self.epochs_per_item = config.model.length
        self.mixture = config.data.open()
        self.dataset_digest = self.mixture.digest
        self.people = people_of_pretraining(config, self.mixture.datasets, [package])
        sha256 = package.config["weights"]["sha256"]
        self._caches = caches_of(self.mixture, config.cache, encoder, sha256, CHUNK, work, on_paper)
        torch.manual_seed(config.train.seed)
        self.module = MaskedContext(config.model, encoder)
        noise = partial(noise_for, shape=self.module.noise_shape, seed=config.train.seed)
        self.stream = self._stream(config.data.split, noise)
        self.validation = self._stream("val", noise, natural=True)
        self.module.standardise(*statistics(streams_of(self.stream)))

    def _stream(self, split: str, noise: Noise, natural: bool = False) -> NightStream | MixedStream:
        def make(source: DataSource, seed: int, noise: Noise | None) -> NightStream:
            nights = self._caches[source.name].split(split)
            return NightStream(nights, self.config.model.length, seed, noise, source.dataset.origin)

        return self.mixture.in_memory(make, self.config.train.seed, noise, natural)

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> LossOutput:
        """The error of masked epochs; masks belong to the items, and come with them."""
        return model(batch.signals, batch.valid, batch.noise)

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """The loss on nights of ``val``, every sequence once (at most ``data.validation_items``), always with the same masks."""
        count = min(len(self.validation), self.config.data.validation_items) or len(self.validation)
        device = next(module.parameters()).device
        parts = [(start, min(VALIDATION_BATCH, count - start)) for start in range(0, count, VALIDATION_BATCH)]

        def losses(share: range) -> Iterator[tuple[Tensor, ...]]:
            with Prefetcher(self.validation, [parts[number] for number in share]) as batches:
                for batch in batches:
                    yield (self.loss(module, batch.to(device), self.config.train.seed).loss.float().cpu(),)

        found = work.each("sequences of val", [size for _, size in parts], losses)
        total = sum(loss.item() * size for (loss,), (_, size) in zip(found, parts, strict=work.world.is_main))
        return {FIGURE: work.on_main(lambda: total / count)}

    def measure(self, metric: str) -> dict[str, Any]:
        """Sequences and seed; and the encoder, whose embeddings are what is to be predicted."""
        return {"items": self.config.data.validation_items, "seed": self.config.train.seed, "parents": self.parents}

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export:
        """Encoder, context and what predicts, so that a fine-tune can start from it and pretraining be taken up again."""
        config, model = self.config, self.config.model
        card = "\n".join(
            [
                f"# {config.registry.name}",
                "",
                f"Temporal context ({model.context.kind}, {model.context.layers} layers, "
                f"{'both ways' if model.context.bidirectional else 'causal'}) trained without labels to predict masked epochs, "
                f"{model.span} at a time and {model.mask_ratio:.0%} in all, of sequences of {model.length} epochs of a night.",
                "",
                f"* data set digest {self.dataset_digest.describe()}, split `{config.data.split}`",
                f"* on the frozen embeddings of {', '.join(self.parents)}, which is inside",
                f"* selected by `{config.registry.metric}` ({config.registry.mode}) on subjects of `val`; no label was read",
                "",
                "`launch/finetune.py` with `encoder=` naming this model starts from its encoder and its context. Not a medical "
                "device.",
                "",
            ]
        )
        return Export({"model": model_config(module), "channels": list(self.module.channels)}, card)
