"""Sequences of encoded epochs: what context and heads are trained on when the encoder below them is frozen.

Each night passes through the encoder once, whatever the number of steps and tasks; a step then costs the heads alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.order import permutation
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, epochs_with_any
from sleepfm.data.windows import window_starts
from sleepfm.errors import EmptySplitError
from sleepfm.models.downstream import Downstream
from sleepfm.stages.downstream_config import SequenceConfig
from sleepfm.stages.second_labels import KINDS, SECONDS, SecondLabels


class OnFrames(Downstream):
    """A :class:`Downstream` whose forward starts from the features of frames, with the same weights and names."""

    def forward(self, frames: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """As that of :class:`Downstream` from ``frames`` ``[B, L, F, D']`` and the epochs ``present`` ``[B, L, 1]``."""
        seen = present[..., 0] if valid is None else present[..., 0] & valid
        return self.from_frames(frames, seen)


class EncodedStream:
    """Windows of consecutive epochs as items, in the order of a permutation of (seed, pass): a batch's ``signals`` are the
    features [B, L, F, D'] of its frames, ``present`` [B, L, 1] says which epochs can be assessed.

    Args:
        nights: features [E, F, D'] of the frames of every recording by name, or its embeddings as [E, 1, D]; nan in epochs
            without a channel.
        labels: of the epochs; a window of which none has a label is no item.
        seconds: labels of the seconds, where there is an event head; ``kinds`` those of events that are told apart.
        evidence: channels of which one must be usable in an epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        nights: Mapping[str, Tensor],
        labels: RecordLabels,
        seconds: SecondLabels | None,
        task: str,
        sequence: SequenceConfig,
        kinds: Sequence[str],
        evidence: Sequence[str],
        seed: int,
    ) -> None:
        self._nights, self._task, self._length = dict(nights), task, sequence.length
        self._names = list(nights)
        self._labels: list[dict[str, Tensor]] = []
        self._seen: list[Tensor] = []
        reader, items = ShardReader(dataset), []
        for number, (name, night) in enumerate(nights.items()):
            row = dataset.index_of(name)
            seen = torch.from_numpy(epochs_with_any(dataset, reader, row, evidence)) & night.isfinite().flatten(1).all(1)
            mine = labels.of(row)
            epochs = torch.where(seen, torch.from_numpy(mine[task].astype(np.int64)), -1)
            held = {task: epochs}
            if seconds is not None:
                held[SECONDS] = torch.where(seen.repeat_interleave(EPOCH_SECONDS), seconds.of(row, mine), -1)
            if seconds is not None and kinds:
                held[KINDS] = torch.where(held[SECONDS] == 1, seconds.kinds_of(row, kinds), -1)
            self._labels.append(held)
            self._seen.append(seen)
            for start in np.unique(window_starts(len(night), sequence.length, sequence.stride)).tolist():
                if (epochs[start : start + sequence.length] >= 0).any():
                    items.append((number, start))
        if not items:
            raise EmptySplitError(
                f"{dataset.path}: no epoch of split 'label' has a label for task {task!r}; build from scored recordings"
            )
        self._items = items
        self._order = lru_cache(2)(lambda number: permutation(len(items), seed, number))

    def __len__(self) -> int:
        """Windows, the items of one pass."""
        return len(self._items)

    def every(self, name: str) -> Tensor:
        """All labels called ``name``, of all recordings."""
        return torch.cat([held[name] for held in self._labels])

    def batch(self, start: int, count: int) -> Batch:
        """Items ``start`` to ``start + count`` of the infinite sequence."""
        position = np.arange(start, start + count)
        items = [self._items[int(self._order(p // len(self))[p % len(self)])] for p in position.tolist()]
        length, shape = self._length, next(iter(self._nights.values())).shape[1:]
        frames = torch.zeros(count, length, *shape)
        present = torch.zeros(count, length, 1, dtype=torch.bool)
        valid = torch.zeros(count, length, dtype=torch.bool)
        scales = {name: 1 if name == self._task else EPOCH_SECONDS for name in self._labels[0]}
        labels = {name: torch.full((count, length * scale), -1) for name, scale in scales.items()}
        for slot, (number, first) in enumerate(items):
            part = self._nights[self._names[number]][first : first + length]
            seen = self._seen[number][first : first + length]
            frames[slot, : len(part)] = part.masked_fill(~seen[:, None, None], 0)
            present[slot, : len(part), 0] = seen
            valid[slot, : len(part)] = True
            for name, values in self._labels[number].items():
                own = values[first * scales[name] : (first + length) * scales[name]]
                labels[name][slot, : len(own)] = own
        return Batch(
            signals=frames,
            present=present,
            valid=valid,
            labels=labels,
            item=torch.from_numpy(position),
            record=[self._names[number] for number, _ in items],
            first_epoch=torch.tensor([first for _, first in items]),
        )
