"""The pretraining stages of encoders: a NeuroNet per modality, and SynthSleepNet on the four of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sleepfm.config import to_dict
from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.data.batch import Batch
from sleepfm.data.mixed_shards import MixedShardStream
from sleepfm.data.stream import EpochStream, Noise, SequenceStream
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.losses import LossOutput
from sleepfm.models.neuronet import NeuroNet, NeuroNetConfig
from sleepfm.models.noise import noise_for
from sleepfm.models.synthsleepnet import SynthSleepNet, SynthSleepNetConfig
from sleepfm.registry.registry import Package, Resolved, load_package
from sleepfm.stages.monitor import Monitor
from sleepfm.stages.people import people_of_pretraining
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.run_config import differing_keys
from sleepfm.training.stage import Export, Stream

if TYPE_CHECKING:
    from sleepfm.stages.pretrain import PretrainConfig


# What the losses of both are made of, and what they are told with.
ERRORS = ("val/loss", "val/reconstruction", "val/contrastive", "val/reconstruction_vs_mean")
LOSSES = (*ERRORS, "val/alignment", "val/uniformity", "val/embedding_std", "val/effective_rank")


class PretrainStage(ABC):
    """What the stages that train encoders share."""

    epochs_per_item = 1

    def __init__(self, config: PretrainConfig, module: NeuroNet | SynthSleepNet, packages: Sequence[Package]) -> None:
        self.config = config
        self.module = module
        self.parents = [package.source.label for package in packages]
        self.mixture = config.data.open()
        self.dataset_digest = self.mixture.digest
        self.people = people_of_pretraining(config, self.mixture.datasets, packages)
        self.validation_items = config.data.validation_items
        self._monitor = (
            None if config.monitor == "none" else Monitor(self.mixture, tuple(module.channels), config.monitor, config.train.seed)
        )

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the stage, in what is printed and tracked."""

    def validate(self, module: nn.Module, work: SharedWork = ALONE) -> dict[str, float]:
        """Probes of the frozen encoder from ``label`` to ``val``, none without a monitor."""
        return self._monitor(module, work) if self._monitor else {}

    def _noise(self) -> Noise:
        """Draws the masking noise of items."""
        return partial(noise_for, shape=self.module.noise_shape, seed=self.config.train.seed)

    def measure(self, metric: str) -> dict[str, Any]:
        """Epochs and seed of the probes; of the loss also the items that are contrasted at once, and what is to be predicted."""
        train = self.config.train
        if self.config.monitor != "none" and metric.removeprefix("val/").startswith(("probe_", "knn_")):
            return to_dict(self.config.monitor) | {"seed": train.seed}
        contrasted = train.global_batch // train.accumulation
        return {"items": self.validation_items, "seed": train.seed, "contrasted": contrasted, "parents": list(self.parents)}

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export:
        """The whole model, decoders included, so that pretraining can be taken up again elsewhere."""
        config = self.config
        size = sum(parameter.numel() for parameter in module.parameters())
        card = "\n".join(
            [
                f"# {config.registry.name}",
                "",
                f"Pretrained without labels on the channels {', '.join(self.module.channels)}: 30-s epochs at "
                f"100 Hz, filtered and robust-scaled per recording. {size:,} parameters.",
                "",
                f"* data set digest {self.dataset_digest.describe()}, split `{config.data.split}`",
                f"* started from {', '.join(self.parents) or 'random weights'}",
                f"* selected by `{config.registry.metric}` ({config.registry.mode}) on subjects of `val`, with "
                "labels of `label`; `test` was not read",
                "",
                "`sleepfm.load(...)` gives a module whose `embed({channel: [B, 3000]})` returns one vector an "
                "epoch. Not a medical device.",
                "",
            ]
        )
        return Export({"model": model_config(module), "channels": list(self.module.channels)}, card)


class UnimodalStage(PretrainStage):
    """A NeuroNet on single epochs of single channels of one modality."""

    def __init__(self, config: PretrainConfig) -> None:
        torch.manual_seed(config.train.seed)
        module = build_model(to_dict(config.model))
        assert isinstance(module, NeuroNet)
        super().__init__(config, module, [])
        self.stream: Stream = self._stream(config.data.split)
        self.validation: Stream = self._stream("val", natural=True)

    @property
    def name(self) -> str:
        """``pretrain-<modality>``."""
        assert isinstance(self.config.model, NeuroNetConfig)
        return f"pretrain-{self.config.model.modality.lower()}"

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> LossOutput:
        """NeuroNet's loss; masks belong to the items, and come with them."""
        return model(batch.signals, batch.noise)

    def _stream(self, split: str, natural: bool = False) -> EpochStream | MixedShardStream:
        make = partial(EpochStream, split=split, channels=self.module.channels)
        return self.mixture.stream(make, self.config.reading(), self._noise(), natural)


class MultimodalStage(PretrainStage):
    """SynthSleepNet on single epochs of all channels, from the registered NeuroNets.

    Raises:
        ConfigError: an address that holds no NeuroNet of its modality, or one of another architecture or size than the model
            section asks for.
    """

    def __init__(self, config: PretrainConfig, sources: dict[str, Resolved]) -> None:
        assert isinstance(config.model, SynthSleepNetConfig)
        encoders, before, packages = {}, {}, []
        for modality, source in sources.items():
            package = load_package(source)
            packages.append(package)
            if not isinstance(package.module, NeuroNet) or package.module.config.modality != modality:
                raise ConfigError(f"encoders.{modality}: {source.uri} is not a NeuroNet of {modality}")
            check_encoder(modality, config.model.encoder_config(modality), package.module.config, source.uri)
            encoders[modality] = package.module.encoder
            before[modality] = {name: value.clone() for name, value in package.module.encoder.state_dict().items()}
        torch.manual_seed(config.train.seed)
        module = SynthSleepNet(config.model, encoders)
        assert_unchanged(module, before, {name: source.uri for name, source in sources.items()})
        super().__init__(config, module, packages)
        self.stream: Stream = self._stream(config.data.split)
        self.validation: Stream = self._stream("val", natural=True)

    @property
    def name(self) -> str:
        """``pretrain-multimodal``."""
        return "pretrain-multimodal"

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> LossOutput:
        """SynthSleepNet's loss on sequences of one epoch."""
        return model(batch.signals[:, 0], batch.present[:, 0], batch.noise)

    def _stream(self, split: str, natural: bool = False) -> SequenceStream | MixedShardStream:
        make = partial(SequenceStream, split=split, channels=self.module.channels, labels=())
        return self.mixture.stream(make, self.config.reading(), self._noise(), natural)


def check_encoder(modality: str, asked: NeuroNetConfig, held: NeuroNetConfig, address: str) -> None:
    """The NeuroNet at ``address`` has the encoder that the configuration asks for.

    What only its own pretraining uses (decoder, projector, masks) may differ.

    Raises:
        ConfigError: naming the keys that differ.
    """
    keys = ("window_s", "step_s", "frame_encoder", "encoder", "position")
    left, right = ({key: value for key, value in to_dict(config).items() if key in keys} for config in (asked, held))
    if differing := differing_keys(left, right):
        raise ConfigError(
            f"encoders.{modality}: {address} has another architecture or size than model.backbone asks for: "
            f"{', '.join(differing)}; give an encoder that fits (sleepfm models lists them), or set its settings in "
            f"model.encoders.{modality}"
        )


def assert_unchanged(module: SynthSleepNet, before: dict[str, dict[str, Tensor]], sources: dict[str, str]) -> None:
    """The pretrained encoders stand in ``module`` bit for bit (the reference initialised them anew, D1).

    ``before`` is the state of each modality's encoder as it was loaded, ``sources`` its address.

    Raises:
        ModelError: naming the first tensor that differs.
    """
    for group, encoder in module.backbones.encoders.items():
        modality = CHANNEL_MODALITY.get(group, group)
        after = {name.replace(".base.", "."): value for name, value in encoder.state_dict().items()}
        for name, value in before[modality].items():
            if name not in after or not torch.equal(after[name], value):
                raise ModelError(
                    f"{group}: tensor {name} has changed since it was loaded from {sources[modality]}; please report this defect"
                )
