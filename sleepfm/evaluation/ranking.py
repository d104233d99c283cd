"""AUROC and average precision, also for many weighted resamples of subjects at once.

A resample of subjects is a vector of counts [S]; a class's scores are counted per subject in bins of equal
score, so that the counts of every resample are one matrix product and both statistics are sums over bins.
With at most ``MAX_BINS`` distinct scores this is exact; with more, neighbouring ranks share a bin and a
resample's AUROC is off by at most 1 / (2 * MAX_BINS) when positives and negatives mix evenly. The reported
value itself always uses one bin per distinct score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096

Float = NDArray[np.float64]


def auroc(positive: NDArray[np.bool_], score: Float) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count one half); nan unless both classes occur."""
    counts = _histogram(positive, _rank_bins(score, None), np.zeros(len(score), int), 1)
    return float(_auroc(*counts)[0])


def average_precision(positive: NDArray[np.bool_], score: Float) -> float:
    """Area under the precision-recall steps, no interpolation; nan unless a positive occurs."""
    counts = _histogram(positive, _rank_bins(score, None), np.zeros(len(score), int), 1)
    return float(_average_precision(*counts)[0])


def resampled(positive: NDArray[np.bool_], score: Float, subject: NDArray[np.intp], counts: Float) -> tuple[Float, Float]:
    """AUROC and average precision [R] of every resample in ``counts`` [R, S].

    ``subject`` [N] numbers the subject (0 to S-1) of each epoch. A resample with one class only gives nan.
    """
    bins = _rank_bins(score, MAX_BINS)
    above, below = (side.astype(np.float32) for side in _histogram(positive, bins, subject, counts.shape[1]))
    aurocs, precisions = np.empty(len(counts)), np.empty(len(counts))
    block = max(1, 2_000_000 // above.shape[1])
    for start in range(0, len(counts), block):
        part = counts[start : start + block].astype(np.float32)
        pos, neg = (part @ above).astype(float), (part @ below).astype(float)
        aurocs[start : start + block] = _auroc(pos, neg)
        precisions[start : start + block] = _average_precision(pos, neg)
    return aurocs, precisions


def _rank_bins(score: Float, limit: int | None) -> NDArray[np.intp]:
    """Bin [N] of each score, ascending; equal scores share a bin."""
    values, inverse = np.unique(score, return_inverse=True)
    if limit is None or len(values) <= limit:
        return inverse
    # Equal shares of epochs a bin: a pile of near-zero scores must not fill the resolution.
    cumulated = np.cumsum(np.bincount(inverse))
    return ((cumulated - 1) * limit // len(score))[inverse]


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
