"""Whether probabilities are as sure as they are right, and how figures differ between people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sleepfm.evaluation.metrics import CALIBRATION_BINS
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.evaluation.predictions import Predictions
from sleepfm.tasks import Classes

# The figure by which one person's epochs are judged, by the kind of task.
HEADLINE = {"multiclass": "kappa", "binary": "auroc"}


@dataclass(frozen=True)
class Reliability:
    """The ``count`` epochs whose confidence is within [``low``, ``high``): its mean, and the share of them that is right."""

    low: float
    high: float
    count: int
    confidence: float
    right: float


def reliability(task: Classes, predictions: Predictions, bins: int = CALIBRATION_BINS) -> tuple[Reliability, ...]:
    """The reliability curve of ``predictions`` (DeGroot and Fienberg 1983, The Statistician 32:12): ``bins`` of equal width.

    As for the calibration error of :func:`sleepfm.evaluation.metrics.evaluate`, the confidence of a binary task is the
    probability of its positive class and right is that class, else that of the named class. Empty bins are left out.
    """
    used = predictions.scored & (predictions.truth >= 0)
    truth, probability = predictions.truth[used], predictions.probability[used]
    if task.kind == "binary":
        confidence, right = probability[:, 1], truth == 1
    else:
        confidence, right = probability.max(axis=1), probability.argmax(axis=1) == truth
    place = np.clip((confidence * bins).astype(np.intp), 0, bins - 1)
    return tuple(
        Reliability(
            number / bins, (number + 1) / bins, int(mine.sum()), float(confidence[mine].mean()), float(right[mine].mean())
        )
        for number in range(bins)
        if (mine := place == number).any()
    )


@dataclass(frozen=True)
class PersonFigure:
    """What a model reached on one person's epochs."""

    subject: str
    epochs: int
    value: float


def person_figures(task: Classes, predictions: Predictions, threshold: float) -> tuple[PersonFigure, ...]:
    """The headline figure (:data:`HEADLINE`) of each person from low to high; people without come last, nan."""
    name, found = HEADLINE[task.kind], []
    people, of = np.unique(predictions.subject.astype(str), return_inverse=True)
    if not len(people):
        return ()
    rows = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    for subject, own in zip(people.tolist(), rows, strict=True):
        mine = Predictions(
            predictions.record[own],
            predictions.subject[own],
            predictions.epoch[own],
            predictions.truth[own],
            predictions.probability[own],
        )
        result = evaluate_predictions(task, mine, threshold, resamples=0)
        found.append(PersonFigure(subject, result.n_epochs, result.metrics[name].value))
    return tuple(sorted(found, key=lambda figure: (math.isnan(figure.value), figure.value, figure.subject)))
