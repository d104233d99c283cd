"""The share of the labels that a job may use: whole people of ``label`` and ``val``, or epochs of every recording.

In a laboratory labels come by person: somebody scores a night, or does not. So people are drawn unless a job says otherwise, with
all of their recordings, in every data set. The people of a smaller fraction are among those of a larger one of the same seed.
``val`` is drawn in proportion, since whoever has few labels selects by few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sleepfm.console import warn
from sleepfm.data.ahead import fetching_ahead
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import DataSource, Mixture
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.errors import EmptySplitError
from sleepfm.evaluation.predictions import Predictions
from sleepfm.stages.downstream_config import LabelledData
from sleepfm.tasks import TASKS
from sleepfm.wording import counted

DRAWN = ("label", "val")
# Of so many people who come next by chance, the one whose labels suit those before best.
_CANDIDATES = 4


@dataclass(frozen=True)
class Drawn:
    """What was drawn of one split: people and labelled epochs, of how many, and the classes of which no label is among them."""

    people: int
    of_people: int
    epochs: int
    missing: tuple[str, ...]


class LabelDraw:
    """The labels of ``task`` that ``data`` leaves of a mixture, the same on every rank.

    Args:
        goes_on: called with every recording whose labels were read.

    Attributes:
        drawn: by split; of a job that uses all labels nothing is drawn, and it is empty.

    Raises:
        ShardError: labels cannot be read.
    """

    def __init__(self, mixture: Mixture, task: str, data: LabelledData, goes_on: Callable[[], None] = lambda: None) -> None:
        self._mixture, self._task, self._data = mixture, task, data
        self.drawn: dict[str, Drawn] = {}
        # Rows of each data set by its digest; None where every recording is used.
        self._rows: dict[str, frozenset[int]] | None = None
        if data.label_fraction == 1:
            return
        by_people = data.label_draw == "people"
        rows: dict[str, set[int]] = {source.part.digest: set() for source in mixture.sources}
        for split in DRAWN:
            people = _People(mixture, split, task, None if by_people else data, goes_on)
            chosen = people.first(data.label_fraction, data.label_seed) if by_people else people.labelled
            for digest, found in people.rows(chosen).items():
                rows[digest] |= found
            self.drawn[split] = people.drawn(chosen)
        if by_people:
            self._rows = {digest: frozenset(found) for digest, found in rows.items()}

    def labels(self, dataset: Dataset) -> RecordLabels:
        """Labels of the task, with everything that was not drawn at -1."""
        fraction = self.epoch_fraction
        rows = self.rows(dataset)
        return RecordLabels(dataset, ShardReader(dataset), (self._task,), self._task, fraction, self._data.label_seed, rows=rows)

    @property
    def epoch_fraction(self) -> float:
        """Share of the epochs of each recording that keeps its labels."""
        return 1.0 if self._data.label_draw == "people" else self._data.label_fraction

    def rows(self, dataset: Dataset) -> frozenset[int] | None:
        """The recordings whose labels may be used; None for all."""
        return None if self._rows is None else self._rows[dataset.digest]

    def select(self, split: str, channels: Sequence[str] = ()) -> list[tuple[DataSource, list[int]]]:
        """As :meth:`Mixture.select`, of the recordings whose labels may be used alone.

        Raises:
            EmptySplitError: nobody who was drawn has such a recording.
        """

        def of(source: DataSource) -> list[int]:
            drawn = self.rows(source.dataset)
            rows = [row for row in source.dataset.select(split, channels).tolist() if drawn is None or row in drawn]
            if not rows:
                raise EmptySplitError(
                    f"{source.dataset.origin}: no drawn recording of split {split!r} has a channel of the model; "
                    "raise data.label_fraction"
                )
            return rows

        return self._mixture.where_not_empty(of)

    def in_proportion(self, dataset: Dataset, predictions: Predictions) -> Predictions:
        """``predictions`` on recordings of ``dataset`` with the truth of epochs that were not drawn at -1."""
        if not self.drawn:
            return predictions
        labels, truth = self.labels(dataset), predictions.truth.copy()
        for name in dict.fromkeys(predictions.record):
            own = predictions.record == name
            kept = labels.of(dataset.index_of(name))[self._task]
            truth[own] = np.where(kept[predictions.epoch[own]] >= 0, truth[own], -1)
        return replace(predictions, truth=truth)

    def facts(self) -> dict[str, str]:
        """What a model card says of it; nothing of a job that uses all labels."""
        found = {}
        for split, drawn in self.drawn.items():
            by = f"{'people' if self._data.label_draw == 'people' else 'epochs of every recording'}, seed {self._data.label_seed}"
            found[f"labels of {split}"] = (
                f"{drawn.epochs} epochs of {drawn.people} of {counted(drawn.of_people, 'person')}, drawn by {by}"
            )
            if drawn.missing:
                found[f"classes without a label in {split}"] = ", ".join(drawn.missing)
        return found

    def warn_of_missing(self) -> None:
        """Say which classes the drawn labels lack: nothing is learnt of them, or selected by them."""
        for split, drawn in self.drawn.items():
            if drawn.missing:
                of = f"{counted(drawn.epochs, 'epoch')} of {counted(drawn.people, 'person')}"
                warn(
                    f"{self._task}: the labels drawn of {split} ({of}) have none of {', '.join(drawn.missing)}; raise "
                    "data.label_fraction, or try another data.label_seed"
                )

    def measure(self) -> dict[str, object]:
        """What decides figures on ``val`` beside the data set; nothing where all labels are used."""
        if not self.drawn:
            return {}
        data = self._data
        return {"label_fraction": data.label_fraction, "label_draw": data.label_draw, "label_seed": data.label_seed}


class _People:
    """The people of one split of a mixture with labelled epochs of ``task``, and how many of each class."""

    def __init__(self, mixture: Mixture, split: str, task: str, epochs: LabelledData | None, goes_on: Callable[[], None]) -> None:
        """``epochs`` says which epochs of a recording count; all where it is None."""
        self._classes = TASKS[task].classes
        self._recordings: list[tuple[str, int, str]] = []
        counts: dict[str, NDArray[np.int64]] = {}
        self._all = np.zeros(len(self._classes), np.int64)
        for source, rows in mixture.select(split):
            dataset, reader = source.dataset, ShardReader(source.dataset)
            labels = RecordLabels(dataset, reader, (task,), task)
            part = (
                labels
                if epochs is None
                else RecordLabels(dataset, reader, (task,), task, epochs.label_fraction, epochs.label_seed)
            )
            for row in fetching_ahead(dataset, rows.tolist(), labels=(task,)):
                key = mixture.person(source, row)
                self._recordings.append((source.part.digest, row, key))
                counts[key] = counts.get(key, 0) + self._count(part.of(row)[task])
                self._all += self._count(labels.of(row)[task])
                goes_on()
        self._counts = {key: found for key, found in counts.items() if found.any()}

    def _count(self, values: NDArray[np.int8]) -> NDArray[np.int64]:
        return np.bincount(values[values >= 0], minlength=len(self._classes))

    @property
    def labelled(self) -> list[str]:
        """All of them."""
        return list(self._counts)

    def first(self, fraction: float, seed: int) -> list[str]:
        """``fraction`` of them, at least one."""
        if not self._counts:
            return []
        keys = sorted(self._counts)
        order = nested_order(keys, np.stack([self._counts[key] for key in keys]), seed)
        return [keys[number] for number in order[: count_of(fraction, len(keys))]]

    def rows(self, chosen: Sequence[str]) -> dict[str, set[int]]:
        """The recordings of the people ``chosen``, by the digest of their data set."""
        found: dict[str, set[int]] = {}
        wanted = set(chosen)
        for digest, row, key in self._recordings:
            if key in wanted:
                found.setdefault(digest, set()).add(row)
        return found

    def drawn(self, chosen: Sequence[str]) -> Drawn:
        """How much of the split is that of the people ``chosen``."""
        counts = sum((self._counts[key] for key in chosen), np.zeros_like(self._all))
        missing = [name for name, held, own in zip(self._classes, self._all, counts, strict=True) if held and not own]
        return Drawn(len(chosen), len(self._counts), int(counts.sum()), tuple(missing))


def count_of(fraction: float, total: int) -> int:
    """How many of ``total`` are ``fraction`` of them: the nearest number, at least one."""
    return max(1, int(fraction * total + 0.5))


def nested_order(keys: Sequence[str], counts: NDArray[np.int64], seed: int) -> list[int]:
    """In which order people with ``keys`` [P] and ``counts`` [P, K] labels of each class are taken, as their numbers.

    By chance, by digests of ``seed`` and key, but stratified: while a class lacks a label, who brings most of the lacking
    classes comes first; and of the next four the one after whom the shares of the classes are nearest to those of all (by the
    sum of absolute differences). Whoever takes fewer people takes the first of them, so that draws are nested.
    """
    by_chance = sorted(range(len(keys)), key=lambda number: hashlib.sha256(f"{seed} {keys[number]}".encode()).digest())
    total = counts.sum(axis=0)
    held = np.zeros_like(total)
    order: list[int] = []
    while by_chance:
        lacking = (held == 0) & (total > 0)
        candidates = by_chance
        if lacking.any():
            gain = (counts[by_chance][:, lacking] > 0).sum(axis=1)
            candidates = [number for number, own in zip(by_chance, gain, strict=True) if own == gain.max()]
        candidates = candidates[:_CANDIDATES]
        after = held + counts[candidates]
        distance = np.abs(after / after.sum(axis=1, keepdims=True) - total / total.sum()).sum(axis=1)
        chosen = candidates[int(distance.argmin())]
        by_chance.remove(chosen)
        order.append(chosen)
        held = held + counts[chosen]
    return order
