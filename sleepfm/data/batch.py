"""What a stream gives to a training step or an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    signals: Tensor
    present: Tensor
    valid: Tensor
    labels: dict[str, Tensor]
    item: Tensor
    record: list[str]
    first_epoch: Tensor

    def __len__(self) -> int:
        return self.signals.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch with its tensors on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            move(self.signals),
            move(self.present),
            move(self.valid),
            {name: move(label) for name, label in self.labels.items()},
            move(self.item),
            self.record,
            move(self.first_epoch),
        )

    def pin(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU overlap with computation."""
        return Batch(
            self.signals.pin_memory(),
            self.present.pin_memory(),
            self.valid.pin_memory(),
            {name: label.pin_memory() for name, label in self.labels.items()},
            self.item.pin_memory(),
            self.record,
            self.first_epoch.pin_memory(),
        )
