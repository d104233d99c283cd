"""AUROC, average precision and sensitivity at a specificity, also for many weighted resamples of subjects at once.

A resample of subjects is a vector of counts [S]; a class's scores are counted per subject in bins of equal score, so that the
counts of every resample are one matrix product and each statistic is a sum over bins.

With at most ``MAX_BINS`` distinct scores this is exact. With more, scores share bins of which none holds more than 2 /
``MAX_BINS`` of the positives, nor of the negatives: bins of equal shares of all scores would put the few positives of a rare
class into the topmost ones, where the average precision of 1,000 people then lies far below its exact value. With at most
``MAX_BINS`` / 2 positives, average precision stays exact. What the bins still cost is known on the whole sample, and is added
to every resample: the value of the whole sample is the exact one, and a resample of one each is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Statistics of the ranks of one class's scores, [R] each, of every resample.

    Attributes:
        auroc: area under the ROC curve (Mann-Whitney, ties count one half); nan unless both sides occur.
        average_precision: area under the precision-recall steps, no interpolation; nan unless a positive occurs.
        sensitivity: the largest of any threshold that is at least as specific as stated; nan unless both sides occur.
    """

    auroc: Float
    average_precision: Float
    sensitivity: Float


def resampled(
    positive: NDArray[np.bool_], score: Float, subject: NDArray[np.intp], counts: Float, specificity: float = 0.9
) -> Ranking:
    """The statistics of every resample in ``counts`` [R, S].

    ``subject`` [N] numbers the subject (0 to S-1) of each epoch; ``specificity`` is the one at which sensitivity is stated.
    """
    bins = _rank_bins(positive, score, MAX_BINS)
    above, below = (side.astype(np.float32) for side in _histogram(positive, bins, subject, counts.shape[1]))
    found = np.empty((3, len(counts)))
    block = max(1, 2_000_000 // above.shape[1])
    for start in range(0, len(counts), block):
        part = counts[start : start + block].astype(np.float32)
        pos, neg = (part @ above).astype(float), (part @ below).astype(float)
        found[:, start : start + block] = _statistics(pos, neg, specificity)
    whole = _statistics(above.sum(0, dtype=float)[None], below.sum(0, dtype=float)[None], specificity)[:, 0]
    exact = _statistics(*_whole(positive, score), specificity)[:, 0]
    return Ranking(*np.clip(found + (exact - whole)[:, None], 0.0, 1.0))


def _whole(positive: NDArray[np.bool_], score: Float) -> tuple[Float, Float]:
    """Positives and negatives of everybody in one bin per distinct score, [1, B] both."""
    return _histogram(positive, _rank_bins(positive, score, None), np.zeros(len(score), int), 1)


def _statistics(pos: Float, neg: Float, specificity: float) -> Float:
    """The three statistics [3, R] of counts in bins [R, B]."""
    return np.stack([_auroc(pos, neg), _average_precision(pos, neg), _sensitivity(pos, neg, specificity)])


def _rank_bins(positive: NDArray[np.bool_], score: Float, limit: int | None) -> NDArray[np.intp]:
    """Bin [N] of each score, ascending; equal scores share a bin. At most about ``limit`` bins, see above."""
    values, inverse = np.unique(score, return_inverse=True)
    if limit is None or len(values) <= limit:
        return inverse
    # A bin ends where the share of either side that lies below reaches its next step; a positive begins one.
    place = np.zeros(len(values), np.intp)
    for side in (positive, ~positive):
        below = np.cumsum(np.bincount(inverse[side], minlength=len(values)))
        place += below * (limit // 2) // max(1, int(below[-1]))
    bins: NDArray[np.intp] = np.cumsum(np.diff(place, prepend=place[0]) > 0)
    return bins[inverse]


def _histogram(
    positive: NDArray[np.bool_], bins: NDArray[np.intp], subject: NDArray[np.intp], n_subjects: int
) -> tuple[Float, Float]:
    """Positives and negatives of each subject in each bin, [S, B] both."""
    n_bins = int(bins.max()) + 1 if len(bins) else 1
    flat = subject * n_bins + bins
    shape = (n_subjects, n_bins)
    above = np.bincount(flat[positive], minlength=n_subjects * n_bins).reshape(shape)
    below = np.bincount(flat[~positive], minlength=n_subjects * n_bins).reshape(shape)
    return above.astype(float), below.astype(float)


def _auroc(pos: Float, neg: Float) -> Float:
    lower = np.cumsum(neg, axis=1) - neg
    pairs = pos.sum(axis=1) * neg.sum(axis=1)
    wins = np.einsum("rb,rb->r", pos, lower + 0.5 * neg)
    return np.divide(wins, pairs, out=np.full(len(pos), np.nan), where=pairs > 0)


def _average_precision(pos: Float, neg: Float) -> Float:
    pos, neg = pos[:, ::-1], neg[:, ::-1]
    hits = np.cumsum(pos, axis=1)
    called = hits + np.cumsum(neg, axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    total = hits[:, -1]
    area = np.einsum("rb,rb->r", pos, precision)
    return np.divide(area, total, out=np.full(len(pos), np.nan), where=total > 0)


def _sensitivity(pos: Float, neg: Float, specificity: float) -> Float:
    hits, alarms = np.cumsum(pos[:, ::-1], axis=1), np.cumsum(neg[:, ::-1], axis=1)
    positives, negatives = hits[:, -1], alarms[:, -1]
    # Counts are whole numbers: what rounding leaves of the product is not to exclude a threshold.
    allowed = alarms <= negatives[:, None] * (1 - specificity) + 1e-9 * np.maximum(1, negatives[:, None])
    reached = np.where(allowed, hits, 0.0).max(axis=1)
    defined = (positives > 0) & (negatives > 0)
    return np.divide(reached, positives, out=np.full(len(pos), np.nan), where=defined)
