"""Figures of predictions: of epochs against their labels, and of what was found against the scored events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import Stage
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events
from sleepfm.evaluation.event_figures import ComparedNight, agreement_of_nights
from sleepfm.evaluation.event_kinds import tell_kinds
from sleepfm.evaluation.events import MIN_IOU, event_family, find_events
from sleepfm.evaluation.metrics import Evaluation, Threshold, choose_threshold, evaluate
from sleepfm.evaluation.paired import PairedAgreement, paired_agreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.tasks import Classes

# Headline figures on `val`.
VALIDATION_FIGURES = ("val/accuracy", "val/majority_accuracy", "val/kappa", "val/macro_f1", "val/auroc", "val/auprc")


def validation_figures(task: Classes, predictions: Predictions) -> dict[str, float]:
    """``val/<figure>`` of the headline figures, without intervals; binary ones at the threshold of max F1."""
    threshold = epoch_threshold(task, predictions)
    result = evaluate_predictions(task, predictions, threshold.value, resamples=0, seed=0)
    return {name: result.metrics[name.removeprefix("val/")].value for name in VALIDATION_FIGURES}


def evaluate_predictions(
    task: Classes, predictions: Predictions, threshold: float, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Every figure of ``predictions``; epochs without a prediction (no usable channel) are left out as
    unscored.
    """
    truth = predictions.truth.copy()
    truth[~predictions.scored] = -1
    return evaluate(
        task,
        truth,
        predictions.probability,
        predictions.subject,
        threshold=threshold,
        n_boot=resamples,
        seed=seed,
    )


def epoch_threshold(task: Classes, predictions: Predictions) -> Threshold:
    """The threshold of an epoch that gives the highest F1 on ``predictions`` of ``val``; nan for tasks of several classes."""
    if task.kind != "binary":
        return Threshold(math.nan, "argmax", math.nan)
    scored = predictions.scored
    return choose_threshold(predictions.truth[scored], predictions.probability[scored, 1])


def compared_nights(data: Dataset | Mixture, kind: str, predictions: Predictions, threshold: float) -> list[ComparedNight]:
    """Detected and scored events of ``kind`` of every recording whose events were scored.

    What is detected are events from the seconds of an event head, of the kind that the head tells if it tells kinds, else runs
    of positive epochs, which are no events (the figures then say how far runs do for them).
    """
    nights = EventNights(data, kind, predictions).at(threshold)
    return [_with_kinds(night, predictions) for night in nights] if predictions.kinds else nights


def _with_kinds(night: ComparedNight, predictions: Predictions) -> ComparedNight:
    """``night`` with the kind that ``predictions`` tell of each detected event."""
    own, kinds = predictions.record == night.record, tuple(predictions.kinds)
    chances = np.column_stack([values[own].reshape(-1) for values in predictions.kinds.values()])
    return replace(night, detected=tell_kinds(night.detected, chances, kinds), kinds=kinds)


class EventNights:
    """The recordings of ``predictions`` whose events of ``kind`` were scored, read once for any number of thresholds."""

    def __init__(self, data: Dataset | Mixture, kind: str, predictions: Predictions) -> None:
        # Of each data set by its digest.
        read: dict[str, tuple[ShardReader, RecordLabels]] = {}
        self._kind, self._located = kind, predictions.seconds is not None
        self._nights: list[tuple[NDArray[np.float64], ComparedNight]] = []
        for record in dict.fromkeys(predictions.record):
            dataset, row = data.find(record)
            if not dataset.records[row].has_events:
                continue
            if dataset.digest not in read:
                reader = ShardReader(dataset)
                read[dataset.digest] = reader, RecordLabels(dataset, reader, ("stage",))
            reader, stages = read[dataset.digest]
            own, seconds = predictions.record == record, predictions.seconds
            probability = predictions.probability[own, 1] if seconds is None else seconds[own].reshape(-1)
            scored = tuple(e for e in scored_events(dataset, reader, row) if event_family(e.type) == kind)
            labelled = (predictions.truth >= 0)[own]
            both = labelled & predictions.scored[own]
            stage = stages.of(row)["stage"]
            asleep = stage > Stage.W if (stage >= 0).any() else None
            person = str(predictions.subject[own][0])
            self._nights.append((probability, ComparedNight(record, person, (), scored, both, asleep, labelled=labelled)))

    def at(self, threshold: float) -> list[ComparedNight]:
        """The nights with what is found at ``threshold``."""
        return [
            replace(night, detected=find_events(probability, threshold, self._kind, self._located))
            for probability, night in self._nights
        ]


@dataclass(frozen=True)
class EventThreshold:
    """From which probability of a second an event is found, by which rule, and what it gave where it was chosen.

    ``index_error`` is the mean absolute error of events per hour of sleep at that threshold, nan where sleep was not staged.
    """

    value: float
    rule: str
    f1: float
    index_error: float


def best_event_threshold(
    data: Dataset | Mixture, kind: str, predictions: Predictions, step: float = 0.02, goes_on: Callable[[], None] | None = None
) -> EventThreshold:
    """The probability of a second, in steps of ``step``, from which events of ``predictions`` agree best with the scored ones.

    Chosen for the F1 of events, on ``val`` only, and judged by the events per hour of sleep, which is what a reader of the
    night goes by. Where none was scored there is nothing to choose by: 0.5, and the rule says so. ``goes_on`` is called after
    each step.
    """
    nights, tried = EventNights(data, kind, predictions), []
    for threshold in np.arange(step, 1, step).tolist():
        found = nights.at(threshold)
        tried.append((agreement_of_nights(found)[0].f1, -threshold, _index_error(found)))
        if goes_on is not None:
            goes_on()
    defined = [row for row in tried if row[0] > 0]
    if not defined:
        return EventThreshold(0.5, "default: no scored event to choose by", math.nan, math.nan)
    f1, threshold, error = max(defined)
    return EventThreshold(-threshold, f"max F1 of events (overlap of at least {MIN_IOU:.0%}) on val", f1, error)


def index_agreement(nights: Sequence[ComparedNight], kind: str, resamples: int = 1000, seed: int = 0) -> PairedAgreement:
    """Events of ``kind`` per hour of the sleep that the human staged, by night: by the model against by the human."""
    pairs = [night.indices() for night in nights]
    theirs, mine = ([pair[side] for pair in pairs] for side in (0, 1))
    people = [night.subject for night in nights]
    return paired_agreement(f"{kind}_index", theirs, mine, people, unit="1/h", n_boot=resamples, seed=seed)


def _index_error(nights: Sequence[ComparedNight]) -> float:
    pairs = np.array([night.indices() for night in nights], float).reshape(-1, 2)
    error = np.abs(pairs[:, 1] - pairs[:, 0])
    return float(np.nanmean(error)) if np.isfinite(error).any() else math.nan
