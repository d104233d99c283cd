"""Polarity: which channels were recorded upside down; decided in one place, once a recording, and told why.

EEG is upside down in parts of NSRR: an early converter exchanged the physical limits of signals with a negative gain
and left their samples (Luna's vignette "Polarity issues in the NSRR"; sleepdata.org/blog/2019/05). What the header
turns over is turned back by reading it. The rest is decided here by weighing

* what is documented of the cohort, as the prior probability that a channel is upside down;
* the asymmetry of slow waves in N2 and N3: K-complexes and slow oscillations have a sharper and larger negative than
  positive phase (AASM; Massimini 2004), so that the third moment of the slow EEG is negative;
* the agreement of channels: slow waves reach C3, C4 and both EOG with one sign, so that a negative correlation says
  that one of two is upside down, though not which;
* the R wave of the ECG, which points up.

Each piece of evidence is a log likelihood ratio that no length of recording raises beyond 50:1, since people and
electrodes differ (the vignette finds no measure that settles every night). The channels' states are weighed together,
all 2^n of them. A channel is turned over if the probability that it is upside down is at least 0.95; down to 0.05 it is
``undecided`` and stays as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from sleepfm.constants import EPOCH_SAMPLES, Stage
from sleepfm.signals.cohort import Cohort, KnownPolarity
from sleepfm.signals.quality import Quality

Decision = Literal["upright", "inverted", "undecided"]

EEG = ("EEG_C3", "EEG_C4")
EOG = ("EOG_L", "EOG_R")
# Channels that have an up and a down that can be told.
POLAR = (*EEG, *EOG, "ECG")

# How likely a channel is upside down before its signal is seen, by what is documented of the cohort.
PRIOR: dict[KnownPolarity, float] = {"inverted": 0.98, "mixed": 0.5, "unknown": 0.06, "upright": 0.01}
SURE = 0.95
_MOST = math.log(50.0)
# Effects that say nothing, and the least number of epochs that says anything.
_SKEW_MARGIN, _CORRELATION_MARGIN, _R_WAVE_MARGIN = 0.02, 0.1, 0.3
_LEAST_EPOCHS = 20
_ECG_EPOCHS = 120
_SLOW_FACTOR = 4
# A body movement shows as an epoch of many times the usual size.
_LARGEST = 4.0
_UNFIT = Quality.FLAT | Quality.DISCONNECTED | Quality.OUT_OF_RANGE | Quality.GAP


@dataclass(frozen=True)
class Polarity:
    """What was decided of a channel.

    Attributes:
        decision: ``inverted`` means that it was turned over.
        probability: that it was recorded upside down, all evidence weighed.
        known: what the cohort says.
        asymmetry: mean third standardised moment of the slow EEG (of the ECG), None where too little was scored.
        agreement: mean correlation of slow waves with other channels.
        epochs: how many of them were judged.
    """

    decision: Decision
    probability: float
    known: KnownPolarity
    asymmetry: float | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    epochs: int = 0

    @property
    def inverted(self) -> bool:
        return self.decision == "inverted"

    def describe(self) -> dict[str, Any]:
        """What to keep beside the data, in JSON types."""
        return {
            "decision": self.decision,
            "probability_inverted": round(self.probability, 4),
            "cohort": self.known,
            "asymmetry": None if self.asymmetry is None else round(self.asymmetry, 4),
            "agreement": {name: round(value, 3) for name, value in self.agreement.items()},
            "epochs": self.epochs,
        }


@dataclass
class _Evidence:
    """Of one channel: log likelihood ratio for being upside down, and how it came about."""

    ratio: float = 0.0
    asymmetry: float | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    epochs: int = 0


def decide_polarity(
    channels: Mapping[str, NDArray[np.float32]],
    quality: Mapping[str, NDArray[np.uint8]],
    stage: NDArray[np.int8],
    cohort: Cohort,
) -> dict[str, Polarity]:
    """The polarity of each of ``channels`` that has one.

    Args:
        channels: filtered signals [E * 3000] at 100 Hz; their scale does not matter.
        quality: bits of :class:`sleepfm.signals.quality.Quality`, [E].
        stage: [E]; without N2 and N3 only the cohort's rule speaks for EEG and EOG.
    """
    names = [name for name in POLAR if name in channels]
    evidence = {name: _Evidence() for name in names}
    brain = [name for name in (*EEG, *EOG) if name in channels]
    calm = _calm_epochs(brain, quality, stage)
    slow = {name: _slow(channels[name])[calm] for name in brain}
    slow = _without_movement(slow)
    present = [name for name in EEG if name in slow]
    for name in present:
        # C3 and C4 show one brain: between them they say no more than one.
        _asymmetry(evidence[name], slow[name], -1.0 / len(present), _SKEW_MARGIN)
    if "ECG" in channels:
        beats = channels["ECG"].reshape(-1, EPOCH_SAMPLES)[(quality["ECG"] & _UNFIT) == 0]
        _asymmetry(evidence["ECG"], beats[:: max(1, len(beats) // _ECG_EPOCHS)], 1.0, _R_WAVE_MARGIN)
    together: dict[tuple[str, str], float] = {}
    for one, other in itertools.combinations(brain, 2):
        if one in EEG:  # two EOG move against each other
            together[one, other] = _agreement(evidence, one, other, slow[one], slow[other])
    known = {name: cohort.polarity.get(name, "unknown") for name in names}
    probability = _weigh(evidence, together, {name: PRIOR[known[name]] for name in names})
    return {
        name: Polarity(
            decision=_decision(probability[name]),
            probability=probability[name],
            known=known[name],
            asymmetry=evidence[name].asymmetry,
            agreement=evidence[name].agreement,
            epochs=evidence[name].epochs,
        )
        for name in names
    }


def _decision(probability: float) -> Decision:
    if probability >= SURE:
        return "inverted"
    return "upright" if probability <= 1.0 - SURE else "undecided"


def _calm_epochs(names: list[str], quality: Mapping[str, NDArray[np.uint8]], stage: NDArray[np.int8]) -> NDArray[np.bool_]:
    calm: NDArray[np.bool_] = (stage == Stage.N2) | (stage == Stage.N3)
    for name in names:
        fit = (quality[name] & _UNFIT) == 0
        # A channel that is bad for most of the night must not silence the others.
        if (fit & calm).sum() >= calm.sum() / 2:
            calm = calm & fit
    return calm


def _slow(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Below about 4 Hz at 25 Hz, an epoch a row [E, 750]."""
    # A product is much faster than a mean over so few columns.
    few = signal.reshape(-1, _SLOW_FACTOR) @ np.full(_SLOW_FACTOR, 1 / _SLOW_FACTOR, np.float32)
    window = np.hanning(9)[1:-1].astype(np.float32)
    smooth: NDArray[np.float32] = np.convolve(few, window / window.sum(), mode="same")
    return smooth.reshape(-1, EPOCH_SAMPLES // _SLOW_FACTOR)


def _without_movement(slow: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    kept: NDArray[np.bool_] | None = None
    for epochs in slow.values():
        size = epochs.std(axis=1)
        usual = (size > 0) & (size < _LARGEST * (np.median(size) if len(size) else 1.0))
        kept = usual if kept is None else kept & usual
    return {name: epochs[kept] for name, epochs in slow.items()}


def _asymmetry(evidence: _Evidence, epochs: NDArray[np.float32], weight: float, margin: float) -> None:
    """Third standardised moment of each epoch; ``weight`` is positive where an upright signal's is positive."""
    evidence.epochs = len(epochs)
    if len(epochs) < _LEAST_EPOCHS:
        return
    centred = epochs - epochs.mean(axis=1, keepdims=True)
    square = centred * centred
    moment = (square * centred).mean(axis=1) / np.maximum(square.mean(axis=1), 1e-12) ** 1.5
    moment = np.clip(moment, -1.0, 1.0) if margin < 0.1 else moment
    evidence.asymmetry = float(moment.mean())
    evidence.ratio = -weight * _log_ratio(moment, margin)


def _agreement(
    evidence: dict[str, _Evidence], one: str, other: str, first: NDArray[np.float32], second: NDArray[np.float32]
) -> float:
    """Log likelihood ratio for both being turned alike."""
    if len(first) < _LEAST_EPOCHS:
        return 0.0
    first, second = (epochs - epochs.mean(axis=1, keepdims=True) for epochs in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation = (first * second).sum(axis=1) / np.maximum(scale, 1e-12)
    mean = float(correlation.mean())
    evidence[one].agreement[other] = evidence[other].agreement[one] = mean
    evidence[other].epochs = evidence[other].epochs or len(first)
    return _log_ratio(correlation, _CORRELATION_MARGIN)


def _log_ratio(values: NDArray[np.floating[Any]], margin: float) -> float:
    """How much likelier the mean of ``values`` (one an epoch) is positive than negative, beyond ``margin``."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    beyond = max(0.0, abs(mean) - margin) / max(error, 1e-6)
    ratio = min(_MOST, float(log_ndtr(beyond) - log_ndtr(-beyond)))
    return math.copysign(ratio, mean)


def _weigh(
    evidence: Mapping[str, _Evidence], together: Mapping[tuple[str, str], float], prior: Mapping[str, float]
) -> dict[str, float]:
    """Probability of each channel to be upside down, summed over all states of all channels."""
    names = list(evidence)
    weights: dict[tuple[bool, ...], float] = {}
    for state in itertools.product((False, True), repeat=len(names)):
        turned = dict(zip(names, state, strict=True))
        total = sum(math.log(prior[name] if turned[name] else 1.0 - prior[name]) for name in names)
        total += sum(evidence[name].ratio for name in names if turned[name])
        total += sum(ratio for (one, other), ratio in together.items() if turned[one] == turned[other])
        weights[state] = total
    largest = max(weights.values())
    odds = {state: math.exp(total - largest) for state, total in weights.items()}
    whole = sum(odds.values())
    return {name: sum(part for state, part in odds.items() if state[place]) / whole for place, name in enumerate(names)}
