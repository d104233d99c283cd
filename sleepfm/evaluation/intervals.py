"""A figure with its 95 % interval, the 2.5 to 97.5 percentile over resamples of *subjects*.

Nights of a person stay together, since epochs of one night, and nights of one person, are not independent. A resample is a row
of counts [S]; the first row is all ones, so that the value itself is the same statistic of the same sums as every resample
(Efron and Tibshirani 1993, chapter 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# Percentile intervals of fewer independent units are too narrow; each then says so.
FEW_PEOPLE = 10


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval over subjects; nan where undefined.

    ``note`` says why a figure or its interval is undefined, and what a reader must know of an interval.
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    note: str = ""


def few_people(n_subjects: int) -> str:
    """What is said of an interval over fewer than ten people; empty for more, and for one, who has none."""
    return f"interval from {n_subjects} people only" if 1 < n_subjects < FEW_PEOPLE else ""


def subject_counts(n_subjects: int, n_boot: int, seed: int) -> Float:
    """How often each subject is in the sample, [1 + n_boot, S]: once each, then resamples; the first row alone for one
    subject."""
    counts = np.ones((1, n_subjects))
    if n_subjects < 2:
        return counts
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), n_boot)
    return np.concatenate([counts, drawn])


def metric_of(column: Float, n_subjects: int, note: str = "", undefined: str = "undefined") -> Metric:
    """The figure whose value and resamples are ``column`` [1 + n_boot], see :func:`subject_counts`.

    Without an interval where there is one subject or the figure is undefined in over a tenth of the resamples. Some statistics,
    such as a calibration error near zero, are larger in nearly every resample than in the sample: the interval then reaches to
    the value, and its note says so. ``undefined`` is said of a value that is nan without another reason in ``note``.
    """
    value, resamples = float(column[0]), column[1:]
    if math.isnan(value):
        return Metric(math.nan, note=note or undefined)
    if n_subjects < 2:
        return Metric(value, note=_join(note, "one subject: no interval"))
    if not len(resamples):
        return Metric(value, note=note)
    valid = resamples[np.isfinite(resamples)]
    if len(valid) < 0.9 * len(resamples):
        return Metric(value, note=_join(note, "no interval: undefined in over a tenth of the resamples"))
    low, high = (float(bound) for bound in np.percentile(valid, [2.5, 97.5]))
    outside = "" if low <= value <= high else "its resamples are biased, and the interval reaches to the value"
    return Metric(value, min(low, value), max(high, value), _join(note, few_people(n_subjects), outside))


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
