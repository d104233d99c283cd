"""Figures of a number that a model tells of every recording, with intervals over people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.evaluation.intervals import Metric, few_people, metric_of, subject_counts
from sleepfm.evaluation.metrics import metrics_from
from sleepfm.evaluation.paired import paired_agreement

Float = NDArray[np.float64]

# Headline figures on `val`.
FIGURES = ("val/mae", "val/rmse", "val/r2", "val/pearson", "val/baseline_mae")


@dataclass(frozen=True)
class Regression:
    """What a model reached on one split.

    Attributes:
        unit: of mae, rmse, bias, limits of agreement and their baseline.
        n_left_out: recordings of which truth or estimate is not known.
        metrics: ``mae``, ``rmse``, ``r2`` (1 less the share of the squared distances from the mean that is left), ``pearson``,
            ``icc``, ``bias``, ``low`` and ``high`` (limits of agreement), and ``baseline_mae``, of always naming one number.
    """

    task: str
    unit: str
    n_recordings: int
    n_left_out: int
    n_subjects: int
    baseline: float
    metrics: dict[str, Metric]

    @property
    def few_people(self) -> str:
        """What is to be said of the intervals where they are from fewer than ten people, else empty."""
        return few_people(self.n_subjects)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; nan stays."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Regression:
        """Inverse of :meth:`to_dict`, also where null stands for nan."""
        return cls(**{**values, "metrics": metrics_from(values["metrics"])})


def evaluate_regression(
    task: str,
    truth: ArrayLike,
    estimate: ArrayLike,
    subject: Sequence[str],
    baseline: float,
    *,
    unit: str = "",
    n_boot: int = 1000,
    seed: int = 0,
) -> Regression:
    """Figures of ``estimate`` [N] against ``truth`` [N], one of each recording of ``subject`` [N].

    Recordings in which one of them is nan are left out and counted. ``baseline`` is the number that a model would name that has
    learnt nothing: the median of those that were learnt from, which has the least mean absolute error there.
    """
    theirs, mine = np.asarray(truth, float), np.asarray(estimate, float)
    there = np.isfinite(theirs) & np.isfinite(mine)
    theirs, mine = theirs[there], mine[there]
    people = np.asarray(subject, dtype=object)[there].astype(str)
    names, index = np.unique(people, return_inverse=True)
    weights = subject_counts(len(names), n_boot, seed)[:, index] if len(names) else np.ones((1, 0))
    count = weights.sum(axis=1)
    both = paired_agreement(task, theirs, mine, people.tolist(), unit=unit, n_boot=n_boot, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = weights @ (mine - theirs) ** 2 / count
        spread, own, shared = (_covariance(weights, *pair) for pair in ((theirs, theirs), (mine, mine), (theirs, mine)))
        columns = {
            "rmse": np.sqrt(squared),
            "r2": np.where(spread > 0, 1 - squared / spread, np.nan),
            "pearson": np.where((spread > 0) & (own > 0), shared / np.sqrt(spread * own), np.nan),
            "baseline_mae": weights @ np.abs(theirs - baseline) / count,
        }
    undefined = "no recording in which both are known" if not len(theirs) else "no recording differs from another"
    metrics = {"mae": both.mae} | {name: metric_of(column, len(names), undefined=undefined) for name, column in columns.items()}
    metrics |= {"icc": both.icc, "bias": both.bias, "low": both.low, "high": both.high}
    return Regression(task, unit, len(theirs), int((~there).sum()), len(names), baseline, metrics)


def _covariance(weights: Float, left: Float, right: Float) -> Float:
    """[R], of values that count ``weights`` [R, N] times; exactly 0 where a side is constant."""
    if not len(left):
        return np.full(len(weights), math.nan)
    left, right = left - left.mean(), right - right.mean()
    count = weights.sum(axis=1)
    found = weights @ (left * right) / count - (weights @ left / count) * (weights @ right / count)
    return np.where(np.abs(found) > 1e-12 * max(1.0, float(np.abs(left * right).max())), found, 0.0)
