"""Figures of predictions: of epochs against their labels, and of what was found against the scored events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events
from sleepfm.evaluation.events import EventAgreement, event_family, find_events, match_events, overlapping, timing_errors
from sleepfm.evaluation.metrics import Evaluation, Threshold, choose_threshold, evaluate
from sleepfm.evaluation.predictions import Predictions
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import Task

# Headline figures on `val`.
VALIDATION_FIGURES = ("val/accuracy", "val/majority_accuracy", "val/kappa", "val/macro_f1", "val/auroc", "val/auprc")


def validation_figures(task: Task, predictions: Predictions) -> dict[str, float]:
    """``val/<figure>`` of the headline figures, without intervals; binary ones at the threshold of max F1."""
    threshold = epoch_threshold(task, predictions)
    result = evaluate_predictions(task, predictions, threshold.value, resamples=0, seed=0)
    return {name: result.metrics[name.removeprefix("val/")].value for name in VALIDATION_FIGURES}


def evaluate_predictions(
    task: Task, predictions: Predictions, threshold: float, resamples: int = 1000, seed: int = 0
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


def epoch_threshold(task: Task, predictions: Predictions) -> Threshold:
    """The threshold of an epoch that gives the highest F1 on ``predictions`` of ``val``; nan for tasks of several classes."""
    if task.kind != "binary":
        return Threshold(math.nan, "argmax", math.nan)
    scored = predictions.scored
    return choose_threshold(predictions.truth[scored], predictions.probability[scored, 1])


def compare_events(
    dataset: Dataset | Mixture, kind: str, predictions: Predictions, threshold: float
) -> tuple[EventAgreement, NDArray[np.float64]]:
    """Detected against scored events of the same recordings, over those whose events were scored: counts of matches, and
    onset and duration of matched events less those scored [N, 2], in seconds. What lies outside of the epochs that both scored
    counts on neither side.

    What is detected are events from the seconds of an event head, else runs of positive epochs, which are no events (the counts
    then say how far runs do for them).
    """
    total, errors = EventAgreement(0, 0, 0), [np.empty((0, 2))]
    located = predictions.seconds is not None
    for probability, both_scored, events in _nights(dataset, kind, predictions):
        detected = overlapping(find_events(probability, threshold, kind, located), both_scored)
        scored = overlapping(events, both_scored)
        total += match_events(detected, scored)
        errors.append(timing_errors(detected, scored))
    return total, np.concatenate(errors)


def best_event_threshold(
    dataset: Dataset | Mixture, kind: str, predictions: Predictions, step: float = 0.02, goes_on: Callable[[], None] | None = None
) -> float:
    """The probability of a second, in steps of ``step``, from which events of ``predictions`` agree best (F1) with the scored
    ones; 0.5 where none was scored. ``goes_on`` is called after each of them.
    """
    steps, f1 = np.arange(step, 1, step), []
    for threshold in steps.tolist():
        f1.append(compare_events(dataset, kind, predictions, threshold)[0].f1)
        if goes_on is not None:
            goes_on()
    return 0.5 if np.isnan(f1).all() or not np.nanmax(f1) else float(steps[int(np.nanargmax(f1))])


def timing_figures(errors: NDArray[np.float64]) -> dict[str, float]:
    """Mean absolute errors in seconds of onset and duration of matched events [N, 2]; none without a match."""
    if not len(errors):
        return {}
    onset, duration = np.abs(errors).mean(0).tolist()
    return {"event_onset_error_s": onset, "event_duration_error_s": duration}


def _nights(
    dataset: Dataset | Mixture, kind: str, predictions: Predictions
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_], list[Event]]]:
    """Of every recording with scored events: probability (of seconds where there are, else of epochs), the epochs that both the
    scorer and the model scored, and the scored events.
    """
    readers: dict[str, ShardReader] = {}
    for record in dict.fromkeys(predictions.record):
        own_set, row = dataset.find(record)
        if own_set.records[row].has_events:
            reader = readers.setdefault(own_set.digest, ShardReader(own_set))
            events = [e for e in scored_events(own_set, reader, row) if event_family(e.type) == kind]
            own = predictions.record == record
            seconds = predictions.seconds
            both_scored = (predictions.truth >= 0)[own] & predictions.scored[own]
            yield (predictions.probability[own, 1] if seconds is None else seconds[own].reshape(-1)), both_scored, events
