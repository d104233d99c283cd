"""Figures of sleep stages for ``mlflow.models.evaluate``, whose rows are nights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mlflow.metrics import MetricValue, make_metric
from mlflow.models import EvaluationMetric
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import UsageError

Figure = Callable[[NDArray[np.int64], NDArray[np.int64]], float]


def stage_metrics() -> list[EvaluationMetric]:
    """Cohen's kappa, accuracy and macro F1 of sleep stages: over all epochs together, and of every night as its score.

    Predictions and targets are stages [E] of each night, -1 unscored; epochs that either side did not score are left out. A
    night without a common epoch has nan. Use as ``extra_metrics``, with ``predictions="stages"``.
    """
    return [
        make_metric(eval_fn=_of_nights(figure), greater_is_better=True, name=name)
        for name, figure in (("kappa", cohen_kappa_score), ("accuracy", accuracy_score), ("macro_f1", _macro_f1))
    ]


def _macro_f1(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    return float(f1_score(truth, found, average="macro", labels=np.unique(truth)))


def _of_nights(figure: Figure) -> Callable[..., MetricValue]:
    def eval_fn(predictions: Any, targets: Any, metrics: Any = None) -> MetricValue:
        nights = [_scored(found, truth) for found, truth in zip(predictions, targets, strict=True)]
        scores = [float(figure(truth, found)) if len(truth) else math.nan for truth, found in nights]
        truth, found = (np.concatenate(side) for side in zip(*nights, strict=True))
        return MetricValue(scores=scores, aggregate_results={"all_epochs": float(figure(truth, found))} if len(truth) else {})

    return eval_fn


def _scored(found: Sequence[int], truth: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truth and prediction of the epochs that both sides scored."""
    ours, theirs = np.asarray(found, np.int64), np.asarray(truth, np.int64)
    if ours.shape != theirs.shape:
        raise UsageError(
            f"the night has {len(ours)} epochs, but {len(theirs)} stages were given; give one stage for each "
            "epoch, -1 if unscored"
        )
    both = (ours >= 0) & (theirs >= 0) & (theirs < len(STAGE_NAMES))
    return theirs[both], ours[both]
