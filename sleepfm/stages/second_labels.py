"""Labels of every second, which an event head learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events, unclear_events
from sleepfm.data.stream import SequenceStream
from sleepfm.evaluation.events import event_family
from sleepfm.signals.scorings.labels import touched
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS

KEPT_RECORDS = 4096
# The names of these labels in a batch: whether a second lies in an event, and in one of which kind.
SECONDS, KINDS = "seconds", "kinds"


class SecondLabels:
    """Which seconds of a recording lie in an event of ``task``: 1 where one covers at least half a second, -1 where the epoch
    has no label or a respiratory event that was not understood touches the second, else 0.
    """

    def __init__(self, dataset: Dataset, task: str) -> None:
        self._dataset, self._task = dataset, TASKS[task]
        self._reader = ShardReader(dataset)
        self._covered: dict[int, NDArray[np.int64]] = {}

    def of(self, row: int, labels: Mapping[str, NDArray[np.int8]]) -> Tensor:
        """Labels [30 E] of the recording in ``row``, whose epochs' ``labels`` [E] say what is scored."""
        scored = np.repeat(labels[self._task.name] >= 0, EPOCH_SECONDS)
        return torch.from_numpy(np.where(scored, self._of_record(row), -1))

    def kinds_of(self, row: int, kinds: Sequence[str]) -> Tensor:
        """Which of ``kinds`` the event is of whose second it is, [30 E]; -1 outside of events, and where no kind was scored."""
        size = int(self._dataset.n_epochs[row]) * EPOCH_SECONDS
        found = np.full(size, -1, np.int64)
        events = scored_events(self._dataset, self._reader, row)
        for number, kind in enumerate(kinds):
            found[covered_seconds([event for event in events if event.type == kind], size)] = number
        return torch.from_numpy(found)

    def kinds_of_batch(self, batch: Batch, seconds: Tensor, kinds: Sequence[str]) -> Tensor:
        """Labels [B, 30 L] of the same for a batch whose seconds are ``seconds`` [B, 30 L]."""
        found = torch.full_like(seconds, -1)
        for row, (record, first) in enumerate(zip(batch.record, batch.first_epoch.tolist(), strict=True)):
            night = self.kinds_of(self._dataset.index_of(record), kinds)
            part = night[first * EPOCH_SECONDS : first * EPOCH_SECONDS + seconds.shape[1]]
            found[row, : len(part)] = part
        return torch.where(seconds == 1, found, -1)

    def batch(self, batch: Batch, epochs: Tensor) -> Tensor:
        """Labels [B, 30 L] of a batch of sequences whose epochs' labels are ``epochs`` [B, L]."""
        length = epochs.shape[1] * EPOCH_SECONDS
        found = torch.zeros(len(batch), length, dtype=torch.int64)
        for row, (record, first) in enumerate(zip(batch.record, batch.first_epoch.tolist(), strict=True)):
            night = self._of_record(self._dataset.index_of(record))
            part = night[first * EPOCH_SECONDS : first * EPOCH_SECONDS + length]
            found[row, : len(part)] = torch.from_numpy(part)
        scored = epochs.repeat_interleave(EPOCH_SECONDS, dim=1) >= 0
        return torch.where(scored, found, -1)

    def _of_record(self, row: int) -> NDArray[np.int64]:
        if row not in self._covered:
            if len(self._covered) >= KEPT_RECORDS:
                del self._covered[next(iter(self._covered))]
            size = int(self._dataset.n_epochs[row]) * EPOCH_SECONDS
            events = [e for e in scored_events(self._dataset, self._reader, row) if event_family(e.type) == self._task.event]
            covered = covered_seconds(events, size)
            doubtful = touched(unclear_events(self._dataset, self._reader, row), size, 1.0) & ~covered
            self._covered[row] = np.where(doubtful, -1, covered.astype(np.int64))
        return self._covered[row]


class SecondsStream(SequenceStream):
    """Sequences whose ``labels`` hold, beside those of ``target``, ``seconds`` [B, 30 L] of a batch, made where it is read, and
    where ``kinds`` of events are told apart, ``kinds`` of the same shape.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        channels: Sequence[str],
        *,
        target: str,
        seconds: SecondLabels,
        kinds: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """``settings`` are those of a :class:`SequenceStream`, whose ``labels`` name ``target``."""
        super().__init__(dataset, split, channels, target=target, **settings)
        self._target, self._seconds, self._kinds = target, seconds, tuple(kinds)

    def batch(self, start: int, count: int, tolerated: float | None = None) -> Batch:
        """As of any stream."""
        batch = super().batch(start, count, tolerated)
        found = {SECONDS: self._seconds.batch(batch, batch.labels[self._target])}
        if self._kinds:
            found[KINDS] = self._seconds.kinds_of_batch(batch, found[SECONDS], self._kinds)
        return replace(batch, labels=batch.labels | found)


def covered_seconds(events: list[Event], size: int) -> NDArray[np.bool_]:
    """[size], seconds of which one of ``events`` covers at least half."""
    covered = np.zeros(size, np.bool_)
    for event in events:
        first, end = (max(0, int(np.floor(edge + 0.5))) for edge in (event.onset, event.onset + event.duration))
        covered[first:end] = True
    return covered
