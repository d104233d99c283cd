"""A figure of a night by the model against the same by a human, over many nights: agreement of paired measurements.

Bias and limits of agreement are those of Bland and Altman (1986, Lancet 327:307), and the intraclass correlation that of single
measurements for absolute agreement with raters as a random effect: ICC(2,1) of Shrout and Fleiss (1979, Psychol Bull 86:420),
ICC(A,1) of McGraw and Wong (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.evaluation import agreement
from sleepfm.evaluation.intervals import Metric, metric_of, subject_counts
from sleepfm.evaluation.metrics import metrics_from

Float = NDArray[np.float64]

# Bounds of the AHI, per hour, from which a severity begins (AASM task force 1999, Sleep 22:667).
SEVERITIES = ("none", "mild", "moderate", "severe")
SEVERITY_BOUNDS = (5.0, 15.0, 30.0)
_LIMITS = 1.96


@dataclass(frozen=True)
class Severity:
    """Nights by severity class: ``confusion`` rows are the human's, columns the model's; share of the right class and kappa."""

    confusion: tuple[tuple[int, ...], ...]
    accuracy: Metric
    kappa: Metric


@dataclass(frozen=True)
class PairedAgreement:
    """Agreement of one figure of a night.

    Attributes:
        name: the figure; ``unit`` of its values.
        reference: of each night by the human; ``estimate`` by the model.
        n_left_out: nights in which one of them is undefined.
        n_subjects: people of the other nights.
        bias: mean of estimate less reference; ``low`` and ``high`` the limits of agreement, bias ± 1.96 standard deviations.
        mae: mean absolute difference; ``icc`` ICC(2,1).
        severity: of an AHI alone.
    """

    name: str
    unit: str
    reference: tuple[float, ...]
    estimate: tuple[float, ...]
    n_left_out: int
    n_subjects: int
    bias: Metric
    low: Metric
    high: Metric
    mae: Metric
    icc: Metric
    severity: Severity | None = None

    @property
    def n_nights(self) -> int:
        """Nights that are compared."""
        return len(self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; nan stays."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PairedAgreement:
        """Inverse of :meth:`to_dict`, also where null stands for nan."""
        metrics = metrics_from({name: values[name] for name in ("bias", "low", "high", "mae", "icc")})
        severity = values.get("severity")
        if severity is not None:
            confusion = tuple(tuple(row) for row in severity["confusion"])
            severity = Severity(confusion, **metrics_from({name: severity[name] for name in ("accuracy", "kappa")}))
        pairs = {name: tuple(values[name]) for name in ("reference", "estimate")}
        return cls(**{**values, **metrics, **pairs, "severity": severity})


def severity_of(ahi: float) -> str:
    """Which of :data:`SEVERITIES` an ``ahi`` is; empty where it is not defined."""
    return SEVERITIES[int(np.digitize(ahi, SEVERITY_BOUNDS))] if np.isfinite(ahi) else ""


def intraclass_correlation(ratings: ArrayLike, weights: ArrayLike | None = None) -> Float:
    """ICC(2,1) of ``ratings`` [N, K], N targets by K raters; with ``weights`` [R, N], how often each target counts, of each
    resample [R].

    nan where nothing varies or there are fewer than two targets.
    """
    table = np.asarray(ratings, dtype=float)
    weight = np.ones((1, len(table))) if weights is None else np.asarray(weights, dtype=float)
    # Sums of squares lose digits far from zero.
    table = table - table.mean() if table.size else table
    raters, count = table.shape[1], weight.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = table.mean(axis=1)
        rater = (weight @ table) / count[:, None]
        mean = rater.mean(axis=1)
        between_targets = raters * (weight @ target**2 - count * mean**2)
        between_raters = count * ((rater - mean[:, None]) ** 2).sum(axis=1)
        total = weight @ (table**2).sum(axis=1) - count * raters * mean**2
        left = np.maximum(0.0, total - between_targets - between_raters)
        targets, raters_mean = between_targets / (count - 1), between_raters / (raters - 1)
        error = left / ((count - 1) * (raters - 1))
        divisor = targets + (raters - 1) * error + raters * (raters_mean - error) / count
        found = (targets - error) / divisor
    return np.where((count > 1) & (divisor > 1e-12), found, np.nan)


def paired_agreement(
    name: str,
    reference: ArrayLike,
    estimate: ArrayLike,
    subject: Sequence[str],
    *,
    unit: str = "",
    is_ahi: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
) -> PairedAgreement:
    """Agreement of ``estimate`` [N] with ``reference`` [N], one value a night of ``subject`` [N].

    Nights in which one of them is undefined (nan) are left out and counted. Intervals are over people. An AHI (``is_ahi``) has
    severity classes as well.
    """
    theirs, mine = np.asarray(reference, dtype=float), np.asarray(estimate, dtype=float)
    there = np.isfinite(theirs) & np.isfinite(mine)
    theirs, mine = theirs[there], mine[there]
    names, index = np.unique(np.asarray(subject, dtype=object)[there].astype(str), return_inverse=True)
    weights = subject_counts(len(names), n_boot, seed)[:, index] if len(names) else np.ones((1, 0))
    difference, count = mine - theirs, weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = weights @ difference / count
        mae = weights @ np.abs(difference) / count
        spread = np.sqrt(np.maximum(0.0, (weights @ difference**2 - count * bias**2) / (count - 1)))
        spread[count < 2] = np.nan

    def metric(column: Float, undefined: str) -> Metric:
        return metric_of(column, len(names), undefined=undefined)

    few = "no night in which both are defined" if not len(theirs) else "one night"
    ratings = np.stack([theirs, mine], axis=1)
    return PairedAgreement(
        name=name,
        unit=unit,
        reference=tuple(theirs.tolist()),
        estimate=tuple(mine.tolist()),
        n_left_out=int((~there).sum()),
        n_subjects=len(names),
        bias=metric(bias, few),
        low=metric(bias - _LIMITS * spread, few),
        high=metric(bias + _LIMITS * spread, few),
        mae=metric(mae, few),
        icc=metric(intraclass_correlation(ratings, weights), few if len(theirs) < 2 else "no night differs from another"),
        severity=_severity(theirs, mine, weights, len(names)) if is_ahi else None,
    )


def _severity(reference: Float, estimate: Float, weights: Float, n_subjects: int) -> Severity:
    """Classes of nights that count ``weights`` [1 + R, N] times; the intervals are over ``n_subjects`` people."""
    classes = len(SEVERITIES)
    theirs, mine = (np.digitize(values, SEVERITY_BOUNDS) for values in (reference, estimate))
    cells = np.zeros((len(theirs), classes**2))
    cells[np.arange(len(theirs)), theirs * classes + mine] = 1
    confusion = (weights @ cells).reshape(-1, classes, classes)
    whole = tuple(tuple(int(cell) for cell in row) for row in confusion[0])
    accuracy = metric_of(agreement.accuracy(confusion), n_subjects, undefined="no night")
    return Severity(whole, accuracy, metric_of(agreement.kappa(confusion), n_subjects, undefined="one class only"))
