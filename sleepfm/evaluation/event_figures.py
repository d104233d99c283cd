"""Detected against scored events of many nights: F1 at stated overlaps, errors of onset and duration, with intervals.

An event belongs to the epochs in which at least half of it lies. Epochs that are in no figure of epochs (unscored by the
human, or by the model) are in no figure of events either: what belongs to them is neither found, missed nor false. Events are
matched before that is looked at, so that an event at the edge of such a stretch is not missed for a shift of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleepfm.evaluation.events import MIN_IOU, EventAgreement, is_known, matched_pairs, mostly_within, overlapping, timing_of
from sleepfm.evaluation.intervals import Metric, metric_of, subject_counts
from sleepfm.signals.scorings.scoring import Event

# The shares of overlap at which F1 is stated; onset and duration are of the events matched at the first.
STATED_IOUS = (MIN_IOU, 0.5)


@dataclass(frozen=True)
class ComparedNight:
    """One night's events of one kind.

    Attributes:
        subject: key of the person; ``record`` names the recording.
        detected: by the model; ``scored`` by a human.
        epochs: [E], true where both scored the kind.
        asleep: [E], true where the human staged sleep; None where sleep was not staged.
        labelled: [E], true where the human's scoring says whether there is an event; None where it does in all epochs.
        kinds: those that the model tells apart, as the types of ``detected``; none where it tells no kinds.
    """

    record: str
    subject: str
    detected: tuple[Event, ...]
    scored: tuple[Event, ...]
    epochs: NDArray[np.bool_]
    asleep: NDArray[np.bool_] | None = None
    kinds: tuple[str, ...] = ()
    labelled: NDArray[np.bool_] | None = None

    def indices(self) -> tuple[float, float]:
        """Scored and detected events per hour of sleep, of the sleep in which both scored; nan without any, and where the
        human's index is not known (:func:`sleepfm.evaluation.events.is_known`).
        """
        if self.asleep is not None and self.labelled is not None and not is_known(self.asleep, self.labelled):
            return np.nan, np.nan
        if self.asleep is None or not (hours := (counted := self.asleep & self.epochs).sum() / 120):
            return np.nan, np.nan
        return len(overlapping(self.scored, counted)) / hours, len(overlapping(self.detected, counted)) / hours


def agreement_of(night: ComparedNight, min_iou: float = MIN_IOU) -> tuple[EventAgreement, NDArray[np.float64]]:
    """Matches of one night at ``min_iou``, and errors of onset and duration of the matched events [N, 2] in seconds."""
    pairs = matched_pairs(night.detected, night.scored, min_iou)
    counted = [(i, j) for i, j in pairs if mostly_within(night.scored[j], night.epochs)]
    found, held = {i for i, _ in pairs}, {j for _, j in pairs}
    missed = [e for j, e in enumerate(night.scored) if j not in held and mostly_within(e, night.epochs)]
    false = [e for i, e in enumerate(night.detected) if i not in found and mostly_within(e, night.epochs)]
    errors = timing_of([(night.detected[i], night.scored[j]) for i, j in counted])
    return EventAgreement(len(counted), len(missed), len(false)), errors


def told_kinds(night: ComparedNight) -> NDArray[np.int64]:
    """Of the matched events of one night, how many that a human scored as the kind of the row (of ``night.kinds``) the model
    tells as that of the column, [K, K]. Events without a kind, or with another, are not counted.
    """
    table = np.zeros((len(night.kinds), len(night.kinds)), np.int64)
    for i, j in matched_pairs(night.detected, night.scored, MIN_IOU):
        told, scored = night.detected[i].type, night.scored[j].type
        if told in night.kinds and scored in night.kinds and mostly_within(night.scored[j], night.epochs):
            table[night.kinds.index(scored), night.kinds.index(told)] += 1
    return table


def agreement_of_nights(nights: Sequence[ComparedNight], min_iou: float = MIN_IOU) -> tuple[EventAgreement, NDArray[np.float64]]:
    """The same of several nights together."""
    total, errors = EventAgreement(0, 0, 0), [np.empty((0, 2))]
    for night in nights:
        agreement, timing = agreement_of(night, min_iou)
        total += agreement
        errors.append(timing)
    return total, np.concatenate(errors)


def event_metrics(
    nights: Sequence[ComparedNight], n_boot: int = 1000, seed: int = 0, ious: Sequence[float] = STATED_IOUS
) -> dict[str, Metric]:
    """Figures of events over ``nights`` with intervals over people.

    ``f1_iou_X``, ``precision_iou_X`` and ``recall_iou_X`` for each share X of overlap; of the events matched at the first
    share the mean absolute and the mean error of onset and of duration in seconds: ``onset_error_s``, ``onset_bias_s`` and so
    on, positive where the model is late or long. Where the model tells kinds of events apart, ``kind_accuracy`` is the share of
    the matched events of a scored kind that it tells rightly, and ``kind_recall_K`` that of the kind K alone.
    """
    names, index = np.unique([night.subject for night in nights], return_inverse=True)
    counts = subject_counts(len(names), n_boot, seed)
    found: dict[str, Metric] = {}

    def per_subject(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums [1 + n_boot, V] over nights of ``values`` [N, V]."""
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, index, values)
        return np.asarray(counts @ sums)

    def add(name: str, numerator: NDArray[np.float64], denominator: NDArray[np.float64], undefined: str) -> None:
        column = np.divide(numerator, denominator, out=np.full(len(counts), np.nan), where=denominator > 0)
        found[name] = metric_of(column, len(names), undefined=undefined)

    for place, iou in enumerate(ious):
        matches = [agreement_of(night, iou) for night in nights]
        table = np.array([(m.matched, m.missed, m.false) for m, _ in matches], float).reshape(-1, 3)
        matched, missed, false = per_subject(table).T
        add(f"f1_iou_{iou:g}", 2 * matched, 2 * matched + missed + false, "no event was scored or detected")
        add(f"precision_iou_{iou:g}", matched, matched + false, "no event was detected")
        add(f"recall_iou_{iou:g}", matched, matched + missed, "no event was scored")
        if place:
            continue
        totals = np.array([[len(e), *np.abs(e).sum(0), *e.sum(0)] for _, e in matches], float).reshape(-1, 5)
        number, *sums = per_subject(totals).T
        for name, total in zip(("onset_error_s", "duration_error_s", "onset_bias_s", "duration_bias_s"), sums, strict=True):
            add(name, total, number, "no event was matched")
    if nights and (kinds := nights[0].kinds):
        size = len(kinds)
        kind_table = per_subject(np.array([told_kinds(night).ravel() for night in nights], float)).reshape(-1, size, size)
        right, scored = np.diagonal(kind_table, axis1=1, axis2=2), kind_table.sum(axis=2)
        add("kind_accuracy", right.sum(axis=1), scored.sum(axis=1), "no matched event has a scored kind")
        for number, kind in enumerate(kinds):
            add(f"kind_recall_{kind}", right[:, number], scored[:, number], f"no matched event was scored as {kind}")
    return found
