"""Reliability by hand and beside scikit-learn's, and each person's own figure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import cohen_kappa_score

from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.reliability import person_figures, reliability
from sleepfm.tasks import TASKS


def made(classes: int, people: int = 4, epochs: int = 200) -> Predictions:
    rng = np.random.default_rng(classes)
    subject = np.repeat([f"p{n}" for n in range(people)], epochs)
    probability = rng.dirichlet(np.ones(classes), people * epochs)
    truth = np.array([rng.choice(classes, p=row) for row in probability])
    truth[:7], probability[7:9] = -1, np.nan
    return Predictions(subject, subject, np.tile(np.arange(epochs), people), truth, probability)


def test_of_a_binary_task_as_scikit_learn_draws_it() -> None:
    predictions = made(2)
    used = predictions.scored & (predictions.truth >= 0)
    right, confidence = calibration_curve(predictions.truth[used], predictions.probability[used, 1], n_bins=15)
    found = reliability(TASKS["apnea"], predictions)
    assert [each.right for each in found] == pytest.approx(right) and [each.confidence for each in found] == pytest.approx(
        confidence
    )
    assert sum(each.count for each in found) == used.sum()


def test_its_gaps_are_the_calibration_error_of_the_evaluation() -> None:
    predictions = made(5)
    found = reliability(TASKS["stage"], predictions)
    total = sum(each.count for each in found)
    gap = sum(each.count * abs(each.confidence - each.right) for each in found) / total
    used = predictions.scored
    figures = evaluate(
        TASKS["stage"], predictions.truth[used], predictions.probability[used], predictions.subject[used], n_boot=0
    )
    assert gap == pytest.approx(figures.metrics["ece"].value)


def test_each_person_has_a_figure_of_the_own_epochs() -> None:
    predictions = made(5)
    predictions.truth[predictions.subject == "p2"] = -1
    found = person_figures(TASKS["stage"], predictions, 0.5)
    assert [figure.subject for figure in found][-1] == "p2" and math.isnan(found[-1].value)
    for figure in found[:-1]:
        own = (predictions.subject == figure.subject) & predictions.scored & (predictions.truth >= 0)
        expected = cohen_kappa_score(predictions.truth[own], predictions.probability[own].argmax(axis=1), labels=range(5))
        assert figure.value == pytest.approx(expected) and figure.epochs == own.sum()
    assert [figure.value for figure in found[:-1]] == sorted(figure.value for figure in found[:-1])
