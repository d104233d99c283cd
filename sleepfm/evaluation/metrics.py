"""Metrics of a task with intervals over subjects, beside what a model that learned nothing would reach.

Intervals are over resamples of people, see :mod:`sleepfm.evaluation.intervals`. Undefined values are nan and carry the reason
in ``note``; nothing is filled in. The figures are written in numpy, since a thousand resamples of a cohort by scikit-learn
take hours; tests hold every one of them to scikit-learn's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.errors import ModelError
from sleepfm.evaluation import agreement, ranking
from sleepfm.evaluation.intervals import Metric, few_people, metric_of, subject_counts
from sleepfm.tasks import Classes

Float = NDArray[np.float64]
CALIBRATION_BINS = 15
STATED_SPECIFICITY = 0.9


@dataclass(frozen=True)
class Evaluation:
    """What ``model -> split`` gave for one task. ``confusion`` rows are truth, columns prediction, in
    ``classes`` order.
    """

    task: str
    classes: tuple[str, ...]
    n_epochs: int
    n_unscored: int
    n_subjects: int
    threshold: float | None
    majority_class: str
    prevalence: dict[str, float]
    metrics: dict[str, Metric]
    confusion: tuple[tuple[int, ...], ...]
    stated_specificity: float | None = None
    """At which ``sensitivity_at_specificity`` is, of binary tasks."""

    @property
    def few_people(self) -> str:
        """What is to be said of the intervals where they are from fewer than ten people, else empty."""
        return few_people(self.n_subjects)

    @property
    def recall(self) -> dict[str, float | None]:
        """Of each class; None of one that nobody scored."""
        rows = zip(self.classes, self.confusion, strict=True)
        return {name: row[place] / sum(row) if sum(row) else None for place, (name, row) in enumerate(rows)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; nan becomes null."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """Inverse of :meth:`to_dict`."""
        metrics = metrics_from(values["metrics"])
        prevalence = _with_nan(values["prevalence"])
        confusion = tuple(tuple(row) for row in values["confusion"])
        fixed = {"metrics": metrics, "prevalence": prevalence, "confusion": confusion}
        return cls(**{**values, "classes": tuple(values["classes"]), **fixed})


def evaluate(
    task: Classes,
    truth: ArrayLike,
    probability: ArrayLike,
    subject: ArrayLike,
    *,
    threshold: float = 0.5,
    n_boot: int = 1000,
    seed: int = 0,
    specificity: float = STATED_SPECIFICITY,
) -> Evaluation:
    """Every figure reported for ``task``.

    Args:
        truth: [N] labels; -1 (unscored) epochs are left out and counted.
        probability: [N, K], rows sum to one.
        subject: [N] key of the person each epoch is of.
        threshold: binary tasks call an epoch positive from this probability on; chosen on ``val``, never
            here.
        n_boot: resamples of subjects; the same ``seed`` gives the same intervals.
        specificity: of binary tasks, at which ``sensitivity_at_specificity`` is stated: the largest sensitivity of any
            threshold that is at least so specific, here and in each resample.

    ``majority_accuracy`` is the accuracy of always naming the commonest class of ``truth``; ``brier`` is the
    mean squared error of the positive class (binary) or summed over classes (Brier 1950); ``ece`` bins the
    positive probability (binary) or that of the named class (multiclass) in 15 equal widths; ``auroc`` and
    ``auprc`` of a multiclass task are means over the classes that occur, one against the rest.

    Raises:
        ModelError: shapes that do not belong together, labels out of range, or probabilities that are none.
    """
    truth_, probability_, subject_ = _checked(task, truth, probability, subject)
    scored = truth_ >= 0
    n_unscored = int((~scored).sum())
    truth_, probability_ = truth_[scored], probability_[scored]
    names, index = np.unique(subject_[scored], return_inverse=True)
    n_classes, n_subjects = len(task.classes), len(names)
    held = np.bincount(truth_, minlength=n_classes)
    binary = task.kind == "binary"
    if binary:
        predicted = (probability_[:, 1] >= threshold).astype(np.intp)
    else:
        predicted = probability_.argmax(axis=1)

    counts = subject_counts(n_subjects, n_boot, seed)
    flat = (index * n_classes + truth_) * n_classes + predicted
    by_subject = np.bincount(flat, minlength=n_subjects * n_classes**2).reshape(n_subjects, n_classes**2)
    confusion = (counts @ by_subject).reshape(-1, n_classes, n_classes)

    values = _confusion_values(task, confusion, int(held.argmax()))
    values |= _calibration_values(task, truth_, probability_, predicted, index, counts)
    values |= _ranking_values(task, truth_, probability_, index, counts, held, specificity)
    notes = _notes(task, held)
    return Evaluation(
        task=task.name,
        classes=task.classes,
        n_epochs=len(truth_),
        n_unscored=n_unscored,
        n_subjects=n_subjects,
        threshold=float(threshold) if binary else None,
        stated_specificity=float(specificity) if binary else None,
        majority_class=task.classes[int(held.argmax())],
        prevalence={name: float(held[k] / len(truth_)) if len(truth_) else math.nan for k, name in enumerate(task.classes)},
        metrics={
            name: metric_of(column, n_subjects, notes.get(name, notes[""]), "undefined: the model names one class only")
            for name, column in values.items()
        },
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion[0]),
    )


@dataclass(frozen=True)
class Threshold:
    """A decision threshold, the rule that chose it and the F1 it gave where it was chosen."""

    value: float
    rule: str
    f1: float


def choose_threshold(truth: ArrayLike, positive_probability: ArrayLike) -> Threshold:
    """The probability from which on an epoch is called positive that gives the highest F1 (of ties, the
    highest).

    Meant for ``val`` only. Without a positive epoch there is nothing to choose by: 0.5, and the rule says so.
    """
    truth_, score = np.asarray(truth), np.asarray(positive_probability, dtype=float)
    score, truth_ = score[truth_ >= 0], truth_[truth_ >= 0]
    if not (truth_ == 1).any():
        return Threshold(0.5, "default: no positive epoch to choose by", math.nan)
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(truth_[order] == 1)
    called = np.arange(1, len(score) + 1)
    last_of_tie = np.append(score[1:] != score[:-1], True)
    f1 = np.where(last_of_tie, 2 * hits / (called + hits[-1]), -1.0)
    best = int(f1.argmax())
    return Threshold(float(score[best]), "max F1 on val", float(f1[best]))


def _checked(
    task: Classes, truth: ArrayLike, probability: ArrayLike, subject: ArrayLike
) -> tuple[NDArray[np.intp], Float, NDArray[Any]]:
    truth_ = np.asarray(truth).astype(np.intp)
    probability_, subject_ = np.asarray(probability, dtype=float), np.asarray(subject)
    expected = (len(truth_), len(task.classes))
    if truth_.ndim != 1 or probability_.shape != expected or subject_.shape != truth_.shape:
        raise ModelError(
            f"task {task.name}: expected truth [N], probability [N, {expected[1]}] and subject [N]; found "
            f"{truth_.shape}, {probability_.shape} and {subject_.shape}"
        )
    if len(truth_) and not -1 <= truth_.min() <= truth_.max() < expected[1]:
        raise ModelError(
            f"task {task.name}: labels from -1 to {expected[1] - 1} expected, found {truth_.min()} to {truth_.max()}"
        )
    sums = probability_.sum(axis=1)
    wrong = ~(np.isfinite(probability_).all(axis=1) & (np.abs(sums - 1) < 1e-3))
    if wrong[truth_ >= 0].any():
        raise ModelError(
            f"task {task.name}: {int(wrong.sum())} of {len(truth_)} rows of probability are not finite or do not sum to 1"
        )
    return truth_, probability_, subject_


def _confusion_values(task: Classes, confusion: Float, majority: int) -> dict[str, Float]:
    held = confusion.sum(axis=-1)
    total = held.sum(axis=-1)
    share = np.divide(held[:, majority], total, out=np.full(len(total), np.nan), where=total > 0)
    f1 = agreement.class_f1(confusion)
    values = {
        "accuracy": agreement.accuracy(confusion),
        "balanced_accuracy": agreement.balanced_accuracy(confusion),
        "majority_accuracy": share,
        "kappa": agreement.kappa(confusion),
        "macro_f1": agreement.macro_f1(confusion),
        "mcc": agreement.matthews(confusion),
    }
    if task.kind == "binary":
        values["sensitivity"] = agreement.recall(confusion, 1)
        values["specificity"] = agreement.recall(confusion, 0)
        values["precision"] = agreement.precision(confusion, 1)
    return values | {f"f1_{name}": f1[:, k] for k, name in enumerate(task.classes)}


def _calibration_values(
    task: Classes,
    truth: NDArray[np.intp],
    probability: Float,
    predicted: NDArray[np.intp],
    index: NDArray[np.intp],
    counts: Float,
) -> dict[str, Float]:
    if task.kind == "binary":
        confidence, correct = probability[:, 1], (truth == 1).astype(float)
        error = (confidence - correct) ** 2
    else:
        confidence = np.take_along_axis(probability, predicted[:, None], axis=1)[:, 0]
        correct = (predicted == truth).astype(float)
        error = ((probability - np.eye(len(task.classes))[truth]) ** 2).sum(axis=1)
    n_subjects = counts.shape[1]
    bins = np.clip((confidence * CALIBRATION_BINS).astype(np.intp), 0, CALIBRATION_BINS - 1)
    cell = index * CALIBRATION_BINS + bins
    # |sum of confidence - sum of hits| per bin over all epochs: the bin's own count cancels.
    gap = np.bincount(cell, confidence - correct, n_subjects * CALIBRATION_BINS)
    gap = np.abs(counts @ gap.reshape(n_subjects, CALIBRATION_BINS)).sum(axis=1)
    total = counts @ np.bincount(index, minlength=n_subjects).astype(float)
    squared = counts @ np.bincount(index, error, n_subjects)
    undefined = np.full(len(total), np.nan)
    return {
        "brier": np.divide(squared, total, out=undefined.copy(), where=total > 0),
        "ece": np.divide(gap, total, out=undefined.copy(), where=total > 0),
    }


def _ranking_values(
    task: Classes,
    truth: NDArray[np.intp],
    probability: Float,
    index: NDArray[np.intp],
    counts: Float,
    held: NDArray[np.intp],
    specificity: float,
) -> dict[str, Float]:
    binary = task.kind == "binary"
    positives = [1] if binary else [k for k in range(len(held)) if held[k]]
    found = [ranking.resampled(truth == k, probability[:, k], index, counts, specificity) for k in positives if len(truth)]
    undefined = np.full((1, len(counts)), np.nan)
    values = {
        "auroc": np.mean([each.auroc for each in found] or undefined, axis=0),
        "auprc": np.mean([each.average_precision for each in found] or undefined, axis=0),
    }
    if binary:
        values["sensitivity_at_specificity"] = np.mean([each.sensitivity for each in found] or undefined, axis=0)
    return values


def _notes(task: Classes, held: NDArray[np.intp]) -> dict[str, str]:
    absent = [name for k, name in enumerate(task.classes) if not held[k]]
    if not held.sum():
        return {"": "no scored epoch"}
    notes = {"": ""}
    if absent:
        missing = ", ".join(absent)
        of_all = ("balanced_accuracy", "macro_f1", "auroc", "auprc", "kappa", "mcc", "sensitivity_at_specificity")
        notes |= dict.fromkeys(of_all, f"{missing} absent in truth")
        notes |= {f"f1_{name}": f"{name} absent in truth" for name in absent}
        if task.kind == "binary":
            side = "specificity" if not held[0] else "sensitivity"
            notes[side] = f"{missing} absent in truth"
    return notes


def plain(value: Any) -> Any:
    """``value`` with lists for tuples and None for nan, as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def metrics_from(values: dict[str, Any]) -> dict[str, Metric]:
    """Figures by name from their plain JSON types."""
    return {name: Metric(**_with_nan(entry)) for name, entry in values.items()}


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if cell is None else cell for key, cell in values.items()}
