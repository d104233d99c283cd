"""Agreement of paired measurements against published and hand-computed cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from sleepfm.evaluation.metrics import plain
from sleepfm.evaluation.paired import PairedAgreement, intraclass_correlation, paired_agreement

# Shrout and Fleiss (1979), table 2: six targets by four judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def anova_icc(table):
    """ICC(2,1) from the mean squares of a two-way analysis of variance, term by term."""
    frame = pd.DataFrame(table).stack().rename("score").rename_axis(["target", "judge"]).reset_index()
    n, k, grand = len(table), len(table[0]), frame["score"].mean()
    targets, judges = frame.groupby("target")["score"].mean(), frame.groupby("judge")["score"].mean()
    between = k * ((targets - grand) ** 2).sum() / (n - 1)
    raters = n * ((judges - grand) ** 2).sum() / (k - 1)
    left = frame["score"] - frame["target"].map(targets) - frame["judge"].map(judges) + grand
    error = (left**2).sum() / ((n - 1) * (k - 1))
    return (between - error) / (between + (k - 1) * error + k * (raters - error) / n)


def test_icc_is_that_of_shrout_and_fleiss():
    assert round(float(intraclass_correlation(SHROUT_FLEISS)[0]), 2) == 0.29
    assert float(intraclass_correlation(SHROUT_FLEISS)[0]) == pytest.approx(anova_icc(SHROUT_FLEISS), abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize(("n", "k"), [(3, 2), (30, 2), (12, 5)])
def test_icc_equals_the_analysis_of_variance(n, k, offset):
    rng = np.random.default_rng(n + k)
    table = rng.gamma(2, 10, (n, 1)) + rng.normal(0, 3, (n, k)) + rng.normal(0, 2, k) + offset
    assert float(intraclass_correlation(table)[0]) == pytest.approx(anova_icc(table.tolist()), rel=1e-6)
    weights = rng.multinomial(n, np.full(n, 1 / n), 6)
    got = intraclass_correlation(table, weights)
    want = [anova_icc(np.repeat(table, row, axis=0).tolist()) for row in weights]
    assert list(got) == pytest.approx(want, rel=1e-6)


def test_a_constant_difference_lowers_the_icc_of_absolute_agreement_and_one_target_has_none():
    theirs = np.array([2.0, 10.0, 20.0, 40.0])
    assert float(intraclass_correlation(np.stack([theirs, theirs], 1))[0]) == pytest.approx(1.0)
    assert float(intraclass_correlation(np.stack([theirs, theirs + 15], 1))[0]) < 0.8
    assert math.isnan(intraclass_correlation([[3.0, 4.0]])[0]) and math.isnan(intraclass_correlation([[3.0, 3.0]] * 4)[0])


def test_bland_altman_of_peak_flow():
    """Bland and Altman (1986): Wright's and the mini peak flow meter on 17 people, l/min."""
    wright = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    got = paired_agreement("flow", mini, wright, [f"p{n}" for n in range(17)], unit="l/min", n_boot=200)
    # Printed there: mean difference -2.1, standard deviation 38.8, limits -79.7 and 75.5 (two standard deviations).
    assert got.bias.value == pytest.approx(-2.1, abs=0.05)
    spread = (got.high.value - got.low.value) / (2 * 1.96)
    assert spread == pytest.approx(38.8, abs=0.05) and got.low.value == pytest.approx(got.bias.value - 1.96 * spread)
    assert got.mae.value == pytest.approx(np.abs(np.subtract(wright, mini)).mean())
    for metric in (got.bias, got.low, got.high, got.mae, got.icc):
        assert metric.ci_low <= metric.value <= metric.ci_high and metric.note == ""


def test_undefined_nights_are_left_out_and_counted_and_severity_is_a_confusion():
    theirs = [2.0, 4.9, 5.0, 14.9, 15.0, 29.9, 30.0, 80.0, math.nan, 3.0]
    mine = [1.0, 6.0, 6.0, 16.0, 20.0, 29.0, 12.0, 31.0, 4.0, math.nan]
    people = list("aabbccddee")
    got = paired_agreement("ahi", theirs, mine, people, unit="1/h", is_ahi=True, n_boot=100)
    assert (got.n_nights, got.n_left_out, got.n_subjects) == (8, 2, 4)
    assert got.severity.confusion == ((1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 2, 0), (0, 1, 0, 1))
    assert got.severity.accuracy.value == 5 / 8 and "4 people only" in got.severity.accuracy.note
    again = PairedAgreement.from_dict(json.loads(json.dumps(plain(got.to_dict()))))
    assert plain(again.to_dict()) == plain(got.to_dict()) and again.severity == got.severity


def test_nights_of_one_person_stay_together():
    """One person of many nights has the interval of one person: none."""
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0, 40, 30)
    one = paired_agreement("ahi", theirs, theirs + 1, ["a"] * 30, is_ahi=True, n_boot=50)
    assert math.isnan(one.bias.ci_low) and one.bias.value == pytest.approx(1.0)
    wide = theirs + np.repeat(rng.normal(0, 5, 10), 3)
    kept = paired_agreement("ahi", theirs, wide, np.repeat(np.arange(10).astype(str), 3).tolist(), n_boot=400)
    apart = paired_agreement("ahi", theirs, wide, [str(n) for n in range(30)], n_boot=400)
    assert kept.bias.ci_high - kept.bias.ci_low > 1.2 * (apart.bias.ci_high - apart.bias.ci_low)


@pytest.mark.parametrize("values", [[], [math.nan], [3.0]])
def test_too_few_nights_give_a_reason(values):
    got = paired_agreement("ahi", values, values, ["a"] * len(values), is_ahi=True)
    assert math.isnan(got.icc.value) and got.icc.note in ("one night", "no night in which both are defined")
    assert math.isnan(got.high.value) and got.high.note
