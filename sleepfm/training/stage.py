"""What the engine needs from a stage of training: a module, a stream, a loss, a validation, an export.

A stage is one job (a unimodal or multimodal pretraining, a probe, a fine-tune). The engine runs any of them
and knows nothing of channels, sleep stages or events. Life of a stage, on every rank unless stated::

    stage = ...                 # same arguments on every rank; the module must come out identical
    loss(model, batch, seed)    # once a micro-step
    validate(module, work)      # every train.validate_every steps and after the last
    export(module, folder, final=False)        # at each new best weights, if they are exported; rank 0 only, the others wait
    export(module, folder, work)               # once, after training, with the best weights (final=True)

The ranks share long work in these calls, and the embedding of a cohort before them: see
:class:`sleepfm.training.ranks.shared_work.SharedWork`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sleepfm.data.batch import Batch
from sleepfm.registry.load_test import BUILD_MODEL
from sleepfm.training.ranks.shared_work import ALONE, SharedWork


class Loss(Protocol):
    """What a stage's loss gives; ``LossOutput`` of the models fits. Parts are scalars, for the log only, and so is the loss
    ``[B]`` of each item, without which nothing is told by source of a mixture.
    """

    @property
    def loss(self) -> Tensor: ...

    @property
    def parts(self) -> Mapping[str, Tensor]: ...

    @property
    def items(self) -> Tensor | None: ...


@dataclass(frozen=True)
class StepLoss:
    """A :class:`Loss` for stages whose model gives logits rather than a loss."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    items: Tensor | None = None


class Stream(Protocol):
    """An infinite, stateless sequence of items: a pure function of the position, the same on every rank."""

    def __len__(self) -> int:
        """Items in one pass."""

    def batch(self, start: int, count: int) -> Batch:
        """The items at global positions ``start .. start + count``."""


@dataclass(frozen=True)
class Export:
    """What a finished stage puts into its package beside the weights.

    ``config`` becomes the package's ``config.yaml`` (the engine adds ``training``); it holds at least
    ``model``, from which :func:`sleepfm.models.build_model` makes the module, and for a downstream task
    ``task`` and ``threshold``. ``metrics`` are final figures (``test/...``), logged and tagged but
    never used for selection. ``card`` is the text of ``MODEL_CARD.md``. ``builder`` (``module:function``) makes the module
    from ``model`` when the package is load-tested.
    """

    config: dict[str, Any]
    card: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    builder: str = BUILD_MODEL


class Stage(Protocol):
    """One training job, as the engine sees it."""

    @property
    def name(self) -> str:
        """For logs and the tracking run, such as ``pretrain-eeg`` or ``finetune-stage``."""

    @property
    def module(self) -> nn.Module:
        """The module, identical on every rank; ``requires_grad`` says what trains."""

    @property
    def stream(self) -> Stream:
        """Training items, the same global order on every rank."""

    @property
    def epochs_per_item(self) -> int:
        """30-s epochs in one item of the stream: 1, or the length of a sequence (for the throughput)."""

    @property
    def dataset_digest(self) -> str:
        """Digest of the data set that the stream reads; a :class:`~sleepfm.data.identity.DataDigest` where it may be several."""

    @property
    def parents(self) -> Sequence[str]:
        """Registered versions this stage starts from, as ``name:version``."""

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> Loss:
        """Loss of this rank's micro-batch, mean over its items.

        ``model`` is the module wrapped by DeepSpeed: call it once, with keyword or positional tensors. It
        computes under autocast; what the stage computes from its output afterwards is in fp32. ``seed`` is
        the run's seed. Masking noise comes with the batch, see ``Batch.noise``. All micro-steps of a step, on all ranks, give the
        same parts.
        """

    def validate(self, module: nn.Module, work: SharedWork) -> dict[str, float]:
        """Figures on the validation split, at bounded cost, such as ``{"val/kappa": 0.6}``; those of rank 0 count.

        Every rank calls this, with the same whole fp32 weights and the module in eval mode, and takes its share of ``work``,
        which brings the device's arithmetic, the results to rank 0, and progress to the watchdog.
        """

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export | None:
        """The package's contents for the weights of ``module`` on rank 0, which alone may write predictions and figures into
        ``folder``; on other ranks anything.

        ``final`` is for the best weights when training is over, and every rank calls it: only then may ``test`` be read. Else the
        call follows a validation of the same weights, on rank 0 alone while the others wait, and it must be cheap.
        """


@runtime_checkable
class ValidatesLoss(Protocol):
    """A stage whose loss is also taken on held-out items, by every rank, in steps shared as in training."""

    @property
    def validation(self) -> Stream:
        """Held-out items."""

    @property
    def validation_items(self) -> int:
        """How many of them at most, rounded down to whole steps; fewer than one step skips it."""


@runtime_checkable
class DrawsFromValidation(Protocol):
    """A stage whose figures on ``val`` depend on more than the data set: on what is drawn from it, and for what."""

    def measure(self, metric: str) -> Mapping[str, Any]:
        """What decides the value of ``metric`` beside the data set and the model; figures with other values are not compared."""


@runtime_checkable
class HasOwnRates(Protocol):
    """A stage whose parameters learn at other rates than ``train.lr``, or decay otherwise than by ``train.weight_decay``."""

    def rate_of(self, name: str) -> float:
        """By what the learning rate of a step is multiplied for the parameter ``name`` of the module."""

    @property
    def weight_decay(self) -> float:
        """Of the parameters that are decayed."""
