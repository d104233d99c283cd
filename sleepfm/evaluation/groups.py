"""Figures by group of people: age band, sex, and class of AHI, for whom a data set knows these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.evaluation.event_figures import ComparedNight, agreement_of
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.metrics import Evaluation, Metric
from sleepfm.evaluation.predictions import Predictions
from sleepfm.signals.groups import GROUPINGS, UNKNOWN, group_of, groups

# Figures of so few people say more of these than of others like them.
FEW = 10
TITLES = {"age": "Age (years)", "sex": "Sex", "ahi": "AHI (events/h)"}
# Grouping -> group -> figures. A grouping of which nothing is known is absent, and so is a group without people.
Groups = Mapping[str, Mapping[str, Evaluation]]
# The same with events that were found, missed and false. A group without a night whose events were scored is absent.
EventGroups = Mapping[str, Mapping[str, EventAgreement]]


def evaluate_groups(data: Dataset | Mixture, predictions: Predictions, evaluate: Callable[[Predictions], Evaluation]) -> Groups:
    """``evaluate`` of the predictions on each group of people of ``data``, the recordings of those not known beside them."""
    found: dict[str, dict[str, Evaluation]] = {}
    for grouping, of in _grouped(data, predictions.record):
        group = np.array([of[record] for record in predictions.record], object)
        found[grouping] = {
            name: evaluate(_part(predictions, group == name)) for name in groups(grouping) if (group == name).any()
        }
    return found


def event_groups(data: Dataset | Mixture, nights: Sequence[ComparedNight]) -> EventGroups:
    """Matches of the events of ``nights`` (at an overlap of 20 %) in each group of people of ``data``."""
    matches = [(night.record, agreement_of(night)[0]) for night in nights]
    found: dict[str, dict[str, EventAgreement]] = {}
    for grouping, of in _grouped(data, (record for record, _ in matches)):
        parts = {name: [counts for record, counts in matches if of[record] == name] for name in groups(grouping)}
        found[grouping] = {name: sum(part, EventAgreement(0, 0, 0)) for name, part in parts.items() if part}
    return found


def _grouped(data: Dataset | Mixture, records: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The groupings of which something is known, each with the group of every one of ``records``."""
    people = {}
    for record in dict.fromkeys(records):
        dataset, index = data.find(record)
        people[record] = dataset.people.of(index)
    for grouping in GROUPINGS:
        of = {record: group_of(person, grouping) for record, person in people.items()}
        if not set(of.values()) <= {UNKNOWN}:
            yield grouping, of


def to_dict(by_group: Groups) -> dict[str, Any]:
    """Plain JSON types."""
    return {grouping: {name: result.to_dict() for name, result in part.items()} for grouping, part in by_group.items()}


def from_dict(values: Mapping[str, Any]) -> Groups:
    """Inverse of :func:`to_dict`."""
    return {grouping: {name: Evaluation.from_dict(result) for name, result in part.items()} for grouping, part in values.items()}


def events_from_dict(values: Mapping[str, Any]) -> EventGroups:
    """From the plain JSON types of :meth:`sleepfm.evaluation.event_results.EventResult.to_dict`."""
    return {grouping: {name: EventAgreement(**counts) for name, counts in part.items()} for grouping, part in values.items()}


@dataclass(frozen=True)
class GroupRow:
    """One group in a table: of each split how many people it has and what the model reached on them, None where it has none;
    of a model that finds events also these, in the splits that have some scored.
    """

    grouping: str
    group: str
    people: Mapping[str, int]
    figures: Mapping[str, Mapping[str, Metric] | None]
    events: Mapping[str, EventAgreement] = field(default_factory=dict)

    def told(self, split: str) -> str:
        """How many people ``split`` has in this group, and that they are few."""
        count = self.people.get(split, 0)
        return f"{count} (fewer than {FEW})" if 0 < count < FEW else str(count)

    def told_events(self, split: str) -> str:
        """F1 of the events of ``split`` in this group, with how many were matched, missed and false."""
        if (found := self.events.get(split)) is None:
            return "–"
        f1 = "–" if math.isnan(found.f1) else f"{found.f1:.3f}"
        return f"{f1} ({found.matched}, {found.missed}, {found.false})"


def group_rows(by_split: Mapping[str, Groups], events: Mapping[str, EventGroups] = MappingProxyType({})) -> Iterator[GroupRow]:
    """Rows of a table of ``by_split``, the groups in order, with those of ``events`` by split."""
    for grouping in GROUPINGS:
        for group in groups(grouping):
            results = {split: part[grouping].get(group) for split, part in by_split.items() if grouping in part}
            if any(results.values()):
                yield GroupRow(
                    TITLES[grouping],
                    group,
                    {split: result.n_subjects if result else 0 for split, result in results.items()},
                    {split: result.metrics if result else None for split, result in results.items()},
                    {split: part[grouping][group] for split, part in events.items() if group in part.get(grouping, ())},
                )


def _part(predictions: Predictions, chosen: Any) -> Predictions:
    names = ("record", "subject", "epoch", "truth", "probability")
    seconds = None if predictions.seconds is None else predictions.seconds[chosen]
    kinds = {name: values[chosen] for name, values in predictions.kinds.items()}
    return replace(predictions, **{name: getattr(predictions, name)[chosen] for name in names}, seconds=seconds, kinds=kinds)
