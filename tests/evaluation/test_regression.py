"""Figures of numbers: equal to scikit-learn's and scipy's, with intervals that hold, and undefined where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sleepfm.evaluation.metrics import plain
from sleepfm.evaluation.regression import Regression, evaluate_regression


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(60, 12, 80)
    estimate = 0.6 * truth + rng.normal(20, 6, 80)
    people = [f"p{number // 2}" for number in range(80)]
    result = evaluate_regression("age", [*truth, math.nan, 50], [*estimate, 3, math.nan], [*people, "x", "y"], 58.0, unit="years")
    assert (result.n_recordings, result.n_left_out, result.n_subjects) == (80, 2, 40)
    value = {name: metric.value for name, metric in result.metrics.items()}
    assert value["mae"] == pytest.approx(mean_absolute_error(truth, estimate))
    assert value["rmse"] == pytest.approx(root_mean_squared_error(truth, estimate))
    assert value["r2"] == pytest.approx(r2_score(truth, estimate))
    assert value["pearson"] == pytest.approx(pearsonr(truth, estimate).statistic)
    assert value["baseline_mae"] == pytest.approx(mean_absolute_error(truth, np.full(80, 58.0)))
    assert value["bias"] == pytest.approx((estimate - truth).mean())
    for metric in result.metrics.values():
        assert metric.ci_low < metric.value < metric.ci_high
    assert Regression.from_dict(plain(result.to_dict())) == result


def test_what_is_undefined_says_so() -> None:
    constant = evaluate_regression("x", [4.0, 4.0, 4.0], [1.0, 2.0, 3.0], ["a", "b", "c"], 4.0)
    assert math.isnan(constant.metrics["r2"].value) and math.isnan(constant.metrics["pearson"].value)
    assert constant.metrics["mae"].value == 2 and "3 people only" in constant.few_people
    nobody = evaluate_regression("x", [math.nan], [1.0], ["a"], 0.0)
    assert nobody.n_recordings == 0 and all(math.isnan(metric.value) and metric.note for metric in nobody.metrics.values())
