"""Statistics of confusion matrices, for one matrix or a stack of them.

Every function takes counts [..., K, K] (rows: truth, columns: prediction) and gives [...]; what is undefined
is nan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], n_classes: int) -> Float:
    """Counts [K, K] of ``truth`` [N] against ``predicted`` [N], both in 0 to K-1."""
    flat = np.asarray(truth, dtype=np.intp) * n_classes + predicted
    return np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes).astype(float)


def accuracy(confusion: Float) -> Float:
    """Share of epochs on the diagonal."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def kappa(confusion: Float) -> Float:
    """Cohen's kappa (1960), unweighted; nan where chance agreement is already one."""
    total = confusion.sum(axis=(-2, -1))
    expected = _ratio((confusion.sum(axis=-1) * confusion.sum(axis=-2)).sum(axis=-1), total**2)
    return _ratio(accuracy(confusion) - expected, 1.0 - expected)


def class_f1(confusion: Float) -> Float:
    """F1 [..., K] of each class; nan for a class that the truth does not hold."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    held, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return np.where(held > 0, _ratio(2.0 * hits, held + called), np.nan)


def macro_f1(confusion: Float) -> Float:
    """Mean F1 of the classes that the truth holds."""
    scores = class_f1(confusion)
    held = np.isfinite(scores)
    return _ratio(np.where(held, scores, 0.0).sum(axis=-1), held.sum(axis=-1).astype(float))


def recall(confusion: Float, which: int) -> Float:
    """Share of the epochs of class ``which`` called so; of 2 classes: sensitivity (1), specificity (0)."""
    return _ratio(confusion[..., which, which], confusion[..., which, :].sum(axis=-1))


def balanced_accuracy(confusion: Float) -> Float:
    """Mean recall of the classes that the truth holds (Brodersen et al. 2010)."""
    held = confusion.sum(axis=-1)
    recalls = _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), held)
    return _ratio(np.where(held > 0, recalls, 0.0).sum(axis=-1), (held > 0).sum(axis=-1).astype(float))


def precision(confusion: Float, which: int) -> Float:
    """Share of the epochs called ``which`` that are so."""
    return _ratio(confusion[..., which, which], confusion[..., :, which].sum(axis=-1))


def matthews(confusion: Float) -> Float:
    """Matthews correlation, K classes (Gorodkin 2004); nan where truth or prediction holds one class only."""
    total = confusion.sum(axis=(-2, -1))
    held, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    covariance = np.trace(confusion, axis1=-2, axis2=-1) * total - (held * called).sum(axis=-1)
    spread = np.sqrt((total**2 - (held**2).sum(axis=-1)) * (total**2 - (called**2).sum(axis=-1)))
    return _ratio(covariance, spread)


def _ratio(numerator: Float, denominator: Float) -> Float:
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
