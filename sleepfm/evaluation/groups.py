"""Figures by group of people: age band, sex, and class of AHI, for whom a data set knows these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.metrics import Evaluation, Metric
from sleepfm.evaluation.predictions import Predictions
from sleepfm.signals.groups import GROUPINGS, UNKNOWN, group_of, groups

# Figures of so few people say more of these than of others like them.
FEW = 10
TITLES = {"age": "Age (years)", "sex": "Sex", "ahi": "AHI (events/h)"}
# Grouping -> group -> figures. A grouping of which nothing is known is absent, and so is a group without people.
Groups = Mapping[str, Mapping[str, Evaluation]]


def evaluate_groups(dataset: Dataset, predictions: Predictions, evaluate: Callable[[Predictions], Evaluation]) -> Groups:
    """``evaluate`` of the predictions on each group of people of ``dataset``, the recordings of those not known beside them."""
    records = list(dict.fromkeys(predictions.record))
    people = {record: dataset.people.of(dataset.index_of(record)) for record in records}
    found: dict[str, dict[str, Evaluation]] = {}
    for grouping in GROUPINGS:
        of = {record: group_of(person, grouping) for record, person in people.items()}
        if set(of.values()) <= {UNKNOWN}:
            continue
        group = np.array([of[record] for record in predictions.record], object)
        found[grouping] = {
            name: evaluate(_part(predictions, group == name)) for name in groups(grouping) if (group == name).any()
        }
    return found


def to_dict(by_group: Groups) -> dict[str, Any]:
    """Plain JSON types."""
    return {grouping: {name: result.to_dict() for name, result in part.items()} for grouping, part in by_group.items()}


def from_dict(values: Mapping[str, Any]) -> Groups:
    """Inverse of :func:`to_dict`."""
    return {grouping: {name: Evaluation.from_dict(result) for name, result in part.items()} for grouping, part in values.items()}


@dataclass(frozen=True)
class GroupRow:
    """One group in a table: of each split how many people it has and what the model reached on them, None where it has none."""

    grouping: str
    group: str
    people: Mapping[str, int]
    figures: Mapping[str, Mapping[str, Metric] | None]

    def told(self, split: str) -> str:
        """How many people ``split`` has in this group, and that they are few."""
        count = self.people.get(split, 0)
        return f"{count} (fewer than {FEW})" if 0 < count < FEW else str(count)


def group_rows(by_split: Mapping[str, Groups]) -> Iterator[GroupRow]:
    """Rows of a table of ``by_split``, the groups in order."""
    for grouping in GROUPINGS:
        for group in groups(grouping):
            results = {split: part[grouping].get(group) for split, part in by_split.items() if grouping in part}
            if any(results.values()):
                yield GroupRow(
                    TITLES[grouping],
                    group,
                    {split: result.n_subjects if result else 0 for split, result in results.items()},
                    {split: result.metrics if result else None for split, result in results.items()},
                )


def _part(predictions: Predictions, chosen: Any) -> Predictions:
    names = ("record", "subject", "epoch", "truth", "probability")
    seconds = None if predictions.seconds is None else predictions.seconds[chosen]
    return replace(predictions, **{name: getattr(predictions, name)[chosen] for name in names}, seconds=seconds)
