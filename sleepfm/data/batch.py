"""What a stream gives to a training step or an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Signals and labels of ``B`` items.

    Attributes:
        signals: [B, 3000] from :class:`~sleepfm.data.stream.EpochStream`, else [B, L, C, 3000]; float32,
            robust-scaled (SpO2 in %). Rows of absent channels and of padding are 0.
        present: [B, L, C] bool, whether the recording has the channel and it is usable in the epoch
            (:data:`sleepfm.signals.quality.UNUSABLE`); false in padding. [B, 1] and true from an EpochStream.
        valid: [B, L] bool, epochs that exist and are to be counted. In evaluation every epoch of a recording
            is valid in exactly one window; the others are context or padding.
        labels: per label [B, L] int64; -1 where unscored, outside the label fraction, or padding; in training
            also where no channel is present.
        item: [B] int64 global position in the infinite stream, for position-keyed noise; in evaluation the
            index of the window in the recording.
        record: [B] names of the recordings.
        first_epoch: [B] int64, index in its recording of the item's first epoch.
        noise: [B, ...] uniform masking noise of the items, drawn where they are read; None for a stage without masks.
        source: [B] int64, the number of the source that the item comes from in a mixture; None for one data set.
    """

    signals: Tensor
    present: Tensor
    valid: Tensor
    labels: dict[str, Tensor]
    item: Tensor
    record: list[str]
    first_epoch: Tensor
    noise: Tensor | None = None
    source: Tensor | None = None

    def __len__(self) -> int:
        return self.signals.shape[0]

    def apply(self, change: Callable[[Any], Any]) -> Batch:
        """The batch with what ``change`` makes of each of its tensors, always in the same order."""
        return replace(
            self,
            signals=change(self.signals),
            present=change(self.present),
            valid=change(self.valid),
            labels={name: change(label) for name, label in self.labels.items()},
            item=change(self.item),
            first_epoch=change(self.first_epoch),
            noise=None if self.noise is None else change(self.noise),
            source=None if self.source is None else change(self.source),
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch with its tensors on ``device``."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> Batch:
        """The batch in memory of its own."""
        return self.apply(lambda tensor: tensor.clone())

    def pin(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU overlap with computation."""
        return self.apply(lambda tensor: tensor.pin_memory())
