from __future__ import annotations

import math
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from sleepfm.errors import ConfigError, ModelError
from sleepfm.evaluation import agreement, ranking
from sleepfm.evaluation.metrics import Evaluation, choose_threshold, evaluate
from sleepfm.evaluation.predictions import Predictions
from sleepfm.tasks import TASKS, get_task

STAGE, APNEA = TASKS["stage"], TASKS["apnea"]


def night(n=4000, n_subjects=10, n_classes=5, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.choice(n_classes, n, p=rng.dirichlet(np.full(n_classes, 3.0)))
    logits = rng.normal(size=(n, n_classes))
    logits[np.arange(n), truth] += 1.2
    if ties:
        logits = np.round(logits)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    subject = rng.integers(0, n_subjects, n).astype(str)
    return truth, probability, subject


def value(evaluation, name):
    return evaluation.metrics[name].value


def test_stage_values_equal_sklearn():
    truth, probability, subject = night()
    got = evaluate(STAGE, truth, probability, subject, n_boot=20)
    predicted = probability.argmax(axis=1)
    assert value(got, "accuracy") == pytest.approx(sk.accuracy_score(truth, predicted))
    assert value(got, "balanced_accuracy") == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert value(got, "kappa") == pytest.approx(sk.cohen_kappa_score(truth, predicted))
    assert value(got, "macro_f1") == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert value(got, "mcc") == pytest.approx(sk.matthews_corrcoef(truth, predicted))
    assert value(got, "auroc") == pytest.approx(sk.roc_auc_score(truth, probability, multi_class="ovr"))
    assert value(got, "auprc") == pytest.approx(sk.average_precision_score(np.eye(5)[truth], probability))
    assert value(got, "brier") == pytest.approx(((probability - np.eye(5)[truth]) ** 2).sum(1).mean())
    assert np.array_equal(got.confusion, sk.confusion_matrix(truth, predicted))
    f1 = sk.f1_score(truth, predicted, average=None)
    assert [value(got, f"f1_{name}") for name in got.classes] == pytest.approx(list(f1))
    assert value(got, "majority_accuracy") == pytest.approx(np.bincount(truth).max() / len(truth))
    assert sum(got.prevalence.values()) == pytest.approx(1)


@pytest.mark.parametrize("ties", [False, True])
def test_binary_values_equal_sklearn(ties):
    truth, probability, subject = night(n_classes=2, ties=ties, seed=3)
    got = evaluate(APNEA, truth, probability, subject, threshold=0.3, n_boot=20)
    predicted = probability[:, 1] >= 0.3
    assert value(got, "auroc") == pytest.approx(sk.roc_auc_score(truth, probability[:, 1]))
    assert value(got, "auprc") == pytest.approx(sk.average_precision_score(truth, probability[:, 1]))
    assert value(got, "sensitivity") == pytest.approx(sk.recall_score(truth, predicted))
    assert value(got, "specificity") == pytest.approx(sk.recall_score(truth, predicted, pos_label=0))
    assert value(got, "precision") == pytest.approx(sk.precision_score(truth, predicted))
    assert value(got, "brier") == pytest.approx(sk.brier_score_loss(truth, probability[:, 1]))
    assert value(got, "balanced_accuracy") == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert got.threshold == 0.3


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95, 1.0])
def test_sensitivity_at_a_stated_specificity_is_read_off_sklearns_roc(ties, specificity):
    truth, probability, subject = night(n_classes=2, ties=ties, seed=4)
    got = evaluate(APNEA, truth, probability, subject, n_boot=200, specificity=specificity)
    alarms, hits, _ = sk.roc_curve(truth, probability[:, 1], drop_intermediate=False)
    metric = got.metrics["sensitivity_at_specificity"]
    assert metric.value == pytest.approx(hits[alarms <= 1 - specificity + 1e-12].max())
    assert got.stated_specificity == specificity and metric.ci_low <= metric.value <= metric.ci_high


def test_figures_of_a_rare_class_of_many_people_lie_amid_their_resamples():
    """Bins of equal shares of all epochs held these 700 positives in two bins, and the interval lay far below the value."""
    rng = np.random.default_rng(0)
    people, epochs = 200, 6000
    subject = np.repeat(np.arange(people), epochs)
    truth = (rng.random(len(subject)) < 6e-4).astype(int)
    score = rng.normal(size=len(subject)) + 4.5 * truth
    positive = 1 / (1 + np.exp(3 - score))
    got = evaluate(APNEA, truth, np.stack([1 - positive, positive], axis=1), subject, n_boot=200).metrics
    assert got["auprc"].value == pytest.approx(sk.average_precision_score(truth, positive))
    counts = np.random.default_rng(7).multinomial(people, np.full(people, 1 / people), 8).astype(float)
    quick = ranking.resampled(truth == 1, positive, subject, counts)
    for row, count in enumerate(counts):
        weight = count[subject]
        want = sk.average_precision_score(truth, positive, sample_weight=weight)
        assert quick.average_precision[row] == pytest.approx(want, abs=1e-6)
        assert quick.auroc[row] == pytest.approx(sk.roc_auc_score(truth, positive, sample_weight=weight), abs=5e-4)
    for name in ("auprc", "auroc", "sensitivity_at_specificity"):
        assert got[name].ci_low < got[name].value < got[name].ci_high, name
    middle = (got["auprc"].ci_low + got["auprc"].ci_high) / 2
    assert abs(got["auprc"].value - middle) < 0.25 * (got["auprc"].ci_high - got["auprc"].ci_low)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 14), st.booleans())
def test_every_value_lies_within_its_own_interval_and_few_people_are_said(seed, people, sharp):
    truth, probability, subject = night(n=60 * people, n_subjects=people, n_classes=2, seed=seed)
    if sharp:
        # Well calibrated: an error of calibration near zero grows in nearly every resample.
        truth = (np.random.default_rng(seed).random(len(truth)) < probability[:, 1]).astype(int)
    got = evaluate(APNEA, truth, probability, subject, n_boot=60)
    for name, metric in got.metrics.items():
        if not math.isnan(metric.ci_low):
            assert metric.ci_low <= metric.value <= metric.ci_high, name
            assert ("people only" in metric.note) == (got.n_subjects < 10), name
    assert bool(got.few_people) == (1 < got.n_subjects < 10)


def slow_ece(confidence, correct, n_bins=15):
    total = 0.0
    for b in range(n_bins):
        inside = [i for i, c in enumerate(confidence) if min(int(c * n_bins), n_bins - 1) == b]
        if inside:
            total += abs(np.mean(confidence[inside]) - np.mean(correct[inside])) * len(inside) / len(confidence)
    return total


def test_ece_equals_the_loop():
    truth, probability, subject = night(n=600)
    predicted = probability.argmax(axis=1)
    want = slow_ece(probability.max(axis=1), (predicted == truth).astype(float))
    assert value(evaluate(STAGE, truth, probability, subject, n_boot=5), "ece") == pytest.approx(want)
    truth, probability, subject = night(n=600, n_classes=2)
    want = slow_ece(probability[:, 1], truth.astype(float))
    assert value(evaluate(APNEA, truth, probability, subject, n_boot=5), "ece") == pytest.approx(want)


def test_each_bin_of_the_ece_is_a_fifteenth_and_the_last_holds_certainty():
    def ece(confidence, truth):
        probability = np.stack([1 - confidence, confidence], axis=1)
        return value(evaluate(APNEA, truth, probability, np.arange(len(truth)) % 2, n_boot=5), "ece")

    # One epoch a bin, too low in one and too high in the next: bins that are merged or shifted cancel each other.
    confidence, truth = (np.arange(15) + 0.5) / 15, (np.arange(15) + 1) % 2
    gaps = confidence - truth
    assert ece(confidence, truth) == pytest.approx(np.abs(gaps).mean())
    # Another in the last bin, where it makes up for the one that is there.
    want = (np.abs(gaps[:14]).sum() + abs(gaps[14] + 1)) / 16
    assert ece(np.append(confidence, 1.0), np.append(truth, 0)) == pytest.approx(want)


def test_two_subjects_are_enough_for_an_interval():
    truth = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    called = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    got = evaluate(APNEA, truth, np.eye(2)[called], np.repeat(["a", "b"], 4), n_boot=200)
    accuracy = got.metrics["accuracy"]
    assert (accuracy.value, accuracy.ci_low, accuracy.ci_high) == (0.75, 0.5, 1.0)
    assert accuracy.note == got.few_people == "interval from 2 people only"


def test_interval_equals_resampling_epochs_of_subjects_by_hand():
    truth, probability, subject = night(n=1500, n_subjects=6, n_classes=2, seed=5, ties=True)
    got = evaluate(APNEA, truth, probability, subject, n_boot=60, seed=11)
    names = np.unique(subject)
    counts = np.random.default_rng(11).multinomial(6, np.full(6, 1 / 6), 60)
    rows = {key: [] for key in ("kappa", "auroc", "auprc", "brier", "macro_f1")}
    for count in counts:
        take = np.concatenate([np.repeat(np.flatnonzero(subject == s), c) for s, c in zip(names, count, strict=True)])
        t, p = truth[take], probability[take, 1]
        rows["kappa"].append(sk.cohen_kappa_score(t, p >= 0.5))
        rows["auroc"].append(sk.roc_auc_score(t, p))
        rows["auprc"].append(sk.average_precision_score(t, p))
        rows["brier"].append(sk.brier_score_loss(t, p))
        rows["macro_f1"].append(sk.f1_score(t, p >= 0.5, average="macro"))
    for name, values in rows.items():
        metric = got.metrics[name]
        assert [metric.ci_low, metric.ci_high] == pytest.approx(list(np.percentile(values, [2.5, 97.5]))), name


def test_resampling_with_more_scores_than_bins_stays_close():
    truth, probability, subject = night(n=30_000, n_classes=2, n_subjects=5)
    index = subject.astype(int)
    counts = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1]], float)
    found = ranking.resampled(truth == 1, probability[:, 1], index, counts)
    aurocs, precisions = found.auroc, found.average_precision
    assert aurocs[0] == pytest.approx(sk.roc_auc_score(truth, probability[:, 1]), abs=1e-3)
    assert precisions[0] == pytest.approx(sk.average_precision_score(truth, probability[:, 1]), abs=1e-3)
    take = np.concatenate([np.flatnonzero(index == 0)] * 2 + [np.flatnonzero(index > 1)])
    assert aurocs[1] == pytest.approx(sk.roc_auc_score(truth[take], probability[take, 1]), abs=1e-3)


def test_same_seed_same_interval_and_epoch_order_does_not_matter():
    truth, probability, subject = night(n=900)
    order = np.random.default_rng(1).permutation(900)
    first = evaluate(STAGE, truth, probability, subject, n_boot=50, seed=2)
    again = evaluate(STAGE, truth[order], probability[order], subject[order], n_boot=50, seed=2)
    for name in first.metrics:
        got, want = again.metrics[name], first.metrics[name]
        assert (got.value, got.ci_low, got.ci_high) == pytest.approx((want.value, want.ci_low, want.ci_high))


def test_unscored_epochs_are_left_out_and_counted():
    truth, probability, subject = night(n=500)
    whole = evaluate(STAGE, truth, probability, subject, n_boot=5)
    padded = evaluate(
        STAGE,
        np.append(truth, [-1] * 7),
        np.vstack([probability, np.full((7, 5), np.nan)]),
        np.append(subject, ["new"] * 7),
        n_boot=5,
    )
    assert padded.n_unscored == 7 and padded.n_epochs == 500 and padded.n_subjects == whole.n_subjects
    assert padded.metrics == whole.metrics


def test_absent_classes_are_named_not_filled_in():
    truth, probability, subject = night(n=500)
    truth = np.where(truth == 3, 2, truth)
    got = evaluate(STAGE, truth, probability, subject, n_boot=30)
    assert math.isnan(value(got, "f1_N3")) and "N3" in got.metrics["f1_N3"].note
    present = [value(got, f"f1_{n}") for n in got.classes if n != "N3"]
    assert value(got, "macro_f1") == pytest.approx(np.mean(present)) and "N3" in got.metrics["macro_f1"].note


def test_one_class_and_one_subject_and_nothing():
    probability = np.tile([0.8, 0.2], (50, 1))
    got = evaluate(APNEA, np.zeros(50, int), probability, ["a"] * 50)
    assert value(got, "accuracy") == 1.0 == value(got, "majority_accuracy")
    for name in ("auroc", "auprc", "kappa", "sensitivity"):
        assert math.isnan(value(got, name)) and got.metrics[name].note
    assert math.isnan(got.metrics["accuracy"].ci_low) and "one subject" in got.metrics["accuracy"].note
    # Without an apnea there is nothing to be sensitive to, without an epoch free of one nothing to be specific about.
    assert "apnea absent in truth" in got.metrics["sensitivity"].note and "absent" not in got.metrics["specificity"].note
    other = evaluate(APNEA, np.ones(50, int), probability, ["a"] * 50)
    assert "absent in truth" in other.metrics["specificity"].note and "absent" not in other.metrics["sensitivity"].note
    empty = evaluate(APNEA, np.full(50, -1), probability, ["a"] * 50)
    assert empty.n_epochs == 0 and all(m.note == "no scored epoch" for m in empty.metrics.values())


def test_json_round_trip():
    truth, probability, subject = night(n=300, n_classes=2)
    for t in (truth, np.zeros(300, int)):
        got = evaluate(APNEA, t, probability, subject, n_boot=10)
        assert Evaluation.from_dict(got.to_dict()).to_dict() == got.to_dict()


@pytest.mark.parametrize(
    ("truth", "probability", "subject"),
    [
        ([0, 1], [[0.5, 0.5]], ["a", "a"]),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], ["a", "a"]),
        ([0, 1], [[0.5, 0.5], [0.9, 0.9]], ["a", "a"]),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.9]], ["a", "a"]),
        ([0, 1], [[0.5, 0.5], [0.1, 0.9]], ["a"]),
    ],
)
def test_wrong_input_is_refused(truth, probability, subject):
    with pytest.raises(ModelError, match="apnea"):
        evaluate(APNEA, truth, probability, subject)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=25))
def test_threshold_is_the_best_of_all(pairs):
    truth, score = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]) / 6
    chosen = choose_threshold(truth, score)
    if truth.sum() == 0:
        assert chosen.value == 0.5 and "no positive" in chosen.rule
        return
    tried = {t: sk.f1_score(truth, score >= t, zero_division=0.0) for t in np.unique(score)}
    assert chosen.f1 == pytest.approx(max(tried.values())) == pytest.approx(tried[chosen.value])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_agreement_equals_sklearn_on_any_confusion(pairs):
    truth, predicted = np.array(pairs).T
    confusion = agreement.confusion_matrix(truth, predicted, 3)
    kappa = agreement.kappa(confusion)
    if len(set(truth) | set(predicted)) > 1:
        assert kappa == pytest.approx(sk.cohen_kappa_score(truth, predicted))
    else:
        assert np.isnan(kappa)
    want = sk.f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0.0)
    assert agreement.macro_f1(confusion) == pytest.approx(want)
    if len(set(truth)) > 1 and len(set(predicted)) > 1:
        assert agreement.matthews(confusion) == pytest.approx(sk.matthews_corrcoef(truth, predicted))
    else:
        assert np.isnan(agreement.matthews(confusion))


@pytest.mark.parametrize(
    "figure", [agreement.accuracy, agreement.kappa, agreement.class_f1, agreement.macro_f1, agreement.matthews]
)
def test_agreement_of_a_stack_is_that_of_each_matrix(figure):
    stack = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 4)).astype(float)
    got = figure(stack)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(got[place], figure(stack[place]))


def test_no_predictions_have_no_rows(tmp_path):
    none = Predictions.none()
    assert [len(part) for part in (none.record, none.subject, none.epoch, none.truth, none.probability)] == [0] * 5
    none.write(tmp_path / "none.parquet")
    assert pq.read_metadata(tmp_path / "none.parquet").num_rows == 0


def test_a_thousand_resamples_take_under_two_seconds():
    truth, probability, subject = night(n=40_000, n_subjects=40)
    start = time.process_time()
    evaluate(STAGE, truth, probability, subject, n_boot=1000)
    assert time.process_time() - start < 4.0  # processor seconds over two threads


def test_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="hypopnea"):
        get_task("hypopnoea")
