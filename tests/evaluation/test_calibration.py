"""Temperature scaling: fitted as an independent optimiser does, and what it does to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from sleepfm.evaluation.calibration import calibrated, fit_temperature, with_temperature
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.predictions import Predictions
from sleepfm.tasks import TASKS


def overconfident(n=6000, k=5, by=3.0, seed=0):
    """Truth drawn from the softmax of logits, and probabilities of ``by`` times those logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, k))
    truth = np.array([rng.choice(k, p=row) for row in softmax(logits, axis=1)])
    return truth, softmax(by * logits, axis=1), logits


@pytest.mark.parametrize(("k", "by"), [(5, 3.0), (5, 0.4), (2, 2.0)])
def test_the_temperature_undoes_what_made_the_model_too_sure(k, by):
    truth, probability, logits = overconfident(k=k, by=by)
    got = fit_temperature(truth, probability)
    assert got.value == pytest.approx(by, rel=0.06) and "log loss on val" in got.rule
    want = minimize(
        lambda t: -log_softmax(by * logits / t[0], axis=1)[np.arange(len(truth)), truth].mean(), [1.0], method="Nelder-Mead"
    )
    assert got.value == pytest.approx(want.x[0], rel=1e-3)
    assert got.loss_before == pytest.approx(log_loss(truth, probability))
    scaled = with_temperature(probability, got.value)
    assert got.loss_after == pytest.approx(log_loss(truth, scaled)) and got.loss_after < got.loss_before
    assert (scaled.argmax(1) == probability.argmax(1)).all() and np.allclose(scaled.sum(1), 1)


def test_calibrated_predictions_are_better_calibrated_and_as_accurate():
    truth, probability, _ = overconfident()
    people = np.arange(len(truth)) % 12
    before = evaluate(TASKS["stage"], truth, probability, people, n_boot=20).metrics
    temperature = fit_temperature(truth[::2], probability[::2]).value
    after = evaluate(TASKS["stage"], truth, with_temperature(probability, temperature), people, n_boot=20).metrics
    assert after["ece"].value < 0.2 * before["ece"].value and after["brier"].value < before["brier"].value
    for name in ("accuracy", "kappa", "macro_f1"):
        assert after[name] == before[name]


def test_unscored_epochs_play_no_part_and_stay():
    truth, probability, _ = overconfident(n=500)
    want = fit_temperature(truth, probability).value
    more_truth = np.concatenate([truth, np.full(50, -1), truth[:50]])
    more = np.concatenate([probability, np.tile(np.eye(5)[0], (50, 1)), np.full((50, 5), np.nan)])
    assert fit_temperature(more_truth, more).value == want
    rows = np.full(len(more), "r", object)
    found = calibrated(Predictions(rows, rows, np.arange(len(more)), more_truth, more, np.ones((len(more), 30))), 2.0)
    assert np.isnan(found.probability[-50:]).all() and (found.seconds == 1).all()
    assert with_temperature(more, 1.0) is more


def test_what_cannot_be_fitted_stays_as_it_is_and_says_why():
    certain = np.tile(np.eye(5)[2], (20, 1))
    assert fit_temperature(np.full(20, 2), certain).rule == "none: fewer than two classes to fit on"
    # Right everywhere: the colder, the better. Wrong as often as right: the hotter, the better.
    truth = np.arange(20) % 5
    sure = np.eye(5)[truth] * 0.5 + 0.1
    assert fit_temperature(truth, sure).value == 1.0 and "at an end" in fit_temperature(truth, sure).rule
    chance = np.eye(5)[(truth + 1) % 5] * 0.5 + 0.1
    assert fit_temperature(truth, chance).value == 1.0
    assert fit_temperature(np.full(3, -1), np.full((3, 5), 0.2)).value == 1.0
