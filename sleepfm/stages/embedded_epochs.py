"""Embeddings of a split's epochs beside their labels, in memory: what probes learn from and are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.order import permutation
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels, epochs_with_any
from sleepfm.errors import EmptySplitError


@dataclass(frozen=True)
class EmbeddedEpochs:
    """Epochs with a label and all that their assessment needs.

    Attributes:
        embedding: [N, D]; ``label`` [N]; ``epoch`` [N], number in its recording; ``night`` [N], number of that in ``names``.
        names: of the recordings; ``people`` the keys of theirs.
    """

    embedding: Tensor
    label: Tensor
    epoch: Tensor
    night: Tensor
    names: tuple[str, ...]
    people: tuple[str, ...]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        nights: Mapping[str, Tensor],
        labels: RecordLabels,
        task: str,
        person: Callable[[int], str],
        evidence: Sequence[str] = (),
        goes_on: Callable[[], None] = lambda: None,
    ) -> EmbeddedEpochs:
        """Those of ``nights``, embeddings [E, D] by recording; ``person`` gives the key of a row's.

        Epochs without a label in ``labels`` or without a channel are left out, and those without one of ``evidence``
        (:attr:`Downstream.evidence`). ``goes_on`` is called with every recording whose labels were read.
        """
        reader = ShardReader(dataset)
        rows = [dataset.index_of(name) for name in nights]
        parts = []
        for number, (row, embedding) in enumerate(zip(rows, nights.values(), strict=True)):
            target = torch.from_numpy(labels.of(row)[task].astype(np.int64))
            seen = torch.from_numpy(epochs_with_any(dataset, reader, row, evidence))
            kept = torch.nonzero((target >= 0) & seen & torch.isfinite(embedding).all(dim=1))[:, 0]
            parts.append((embedding[kept], target[kept], kept, torch.full_like(kept, number)))
            goes_on()
        embedded, label, epoch, night = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(embedded, label, epoch, night, tuple(nights), tuple(person(row) for row in rows))

    def __len__(self) -> int:
        return len(self.label)

    def people_with_labels(self) -> set[str]:
        """Keys of the people of whom there is an epoch."""
        return {self.people[number] for number in self.night.unique().tolist()}

    @classmethod
    def joined(cls, parts: Sequence[EmbeddedEpochs]) -> EmbeddedEpochs:
        """Those of several data sets as one."""
        before = np.cumsum([0, *(len(part.names) for part in parts)]).tolist()
        return cls(
            torch.cat([part.embedding for part in parts]),
            torch.cat([part.label for part in parts]),
            torch.cat([part.epoch for part in parts]),
            torch.cat([part.night + first for part, first in zip(parts, before, strict=False)]),
            tuple(name for part in parts for name in part.names),
            tuple(person for part in parts for person in part.people),
        )


class EmbeddingStream:
    """Labelled epochs as items, embedding and label, in the order of a permutation of (seed, pass).

    Raises:
        EmptySplitError: there is none; ``origin`` names the data set.
    """

    def __init__(self, epochs: EmbeddedEpochs, task: str, seed: int, origin: str) -> None:
        self.epochs, self._task = epochs, task
        if not len(epochs):
            raise EmptySplitError(
                f"{origin}: no epoch of split 'label' has a label for task {task!r}; build from scored recordings"
            )
        self._order = lru_cache(2)(lambda number: permutation(len(self), seed, number))

    def __len__(self) -> int:
        """Labelled epochs, the items of one pass."""
        return len(self.epochs)

    @property
    def labels(self) -> Tensor:
        """Of all items, [N]."""
        return self.epochs.label

    def batch(self, start: int, count: int) -> Batch:
        """Items ``start`` to ``start + count`` of the infinite sequence; ``signals`` are embeddings [B, 1, D]."""
        epochs, position = self.epochs, np.arange(start, start + count)
        row = torch.tensor([self._order(p // len(self))[p % len(self)] for p in position.tolist()])
        ones = torch.ones(count, 1, dtype=torch.bool)
        return Batch(
            signals=epochs.embedding[row][:, None],
            present=ones,
            valid=ones,
            labels={self._task: epochs.label[row][:, None]},
            item=torch.from_numpy(position),
            record=[epochs.names[number] for number in epochs.night[row].tolist()],
            first_epoch=epochs.epoch[row],
        )
