"""Temperature scaling: one number, fitted on ``val``, that makes probabilities as sure as they are right.

A softmax's logits are divided by the temperature before it (Guo et al. 2017, ICML, section 4.2). The order of an epoch's
classes stays, and so do accuracy, kappa and F1 of tasks of several classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sleepfm.evaluation.predictions import Predictions

# A temperature beyond these says that the model knows nothing, or that the epochs are too few.
LOWEST, HIGHEST = 0.05, 20.0
_SMALLEST = 1e-12
# A log loss (nats) by less is no better.
_FLAT = 1e-6


@dataclass(frozen=True)
class Temperature:
    """A temperature, how it was found, and the mean log loss (nats) of the epochs that it was fitted on, before and after."""

    value: float
    rule: str
    loss_before: float = float("nan")
    loss_after: float = float("nan")


def fit_temperature(truth: NDArray[np.integer], probability: NDArray[np.float64]) -> Temperature:
    """The temperature that gives ``probability`` [N, K] the least log loss on ``truth`` [N] (-1 unscored); meant for ``val``
    only.

    1, with the reason in ``rule``, where fewer than two classes are scored, or the least loss is at either end of the range:
    such a fit would make probabilities certain, or all alike.
    """
    # A job imports it at its end, not before its first step.
    from scipy.optimize import minimize_scalar

    usable = (truth >= 0) & np.isfinite(probability).all(axis=1)
    truth, probability = truth[usable], probability[usable]
    if len(np.unique(truth)) < 2:
        return Temperature(1.0, "none: fewer than two classes to fit on")
    logits = np.log(np.maximum(probability, _SMALLEST))
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        largest = scaled.max(axis=1)
        normaliser = largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=1))
        return float((normaliser - scaled[rows, truth]).mean())

    ends = np.log([LOWEST, HIGHEST])
    # Convex in the inverse temperature, so that any minimum is the one there is.
    found = float(minimize_scalar(loss, bounds=tuple(ends), method="bounded", options={"xatol": 1e-6}).x)
    if min(loss(end) for end in ends.tolist()) - loss(found) < _FLAT:
        return Temperature(
            1.0, f"none: the least log loss on val is at an end of {LOWEST:g} to {HIGHEST:g}", loss(0.0), loss(0.0)
        )
    return Temperature(float(np.exp(found)), "least log loss on val", loss(0.0), loss(found))


def with_temperature(probability: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """``probability`` [..., K] at ``temperature``; nan stays nan."""
    if temperature == 1.0:
        return probability
    scaled = np.log(np.maximum(probability, _SMALLEST)) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
    """``predictions`` whose probabilities of epochs are at ``temperature``; those of seconds, which have a threshold of their
    own, stay.
    """
    return replace(predictions, probability=with_temperature(predictions.probability, temperature))
