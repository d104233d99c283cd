"""Polarity: which channels were recorded upside down; decided in one place, once a recording, and told why.

EEG is upside down in parts of NSRR: an early converter exchanged the physical limits of signals with a negative gain
and left their samples (Luna's vignette "Polarity issues in the NSRR"; sleepdata.org/blog/2019/05). What the header
turns over is turned back by reading it. The rest is decided here by weighing

* what is documented of the cohort, as the prior probability that a channel is upside down;
* the asymmetry of slow waves: K-complexes and slow oscillations have a sharper negative than positive phase (AASM;
  Massimini 2004), so that the slow EEG bends more sharply at its negative peaks;
* the agreement of channels: slow waves reach C3, C4 and both eyes with one sign, so that a negative correlation says that
  one of two is upside down, though not which;
* the R wave of the ECG, which points up.

Both of the brain's signs hold against a mastoid or ear, and only what the montage says to be so is weighed. Slow waves are
largest at the front of the head: an EOG against Fpz or the nasion shows the difference of two frontal sites. By volume
conduction that is the other sign than at C3, yet Luna's vignette finds EEG and EOG of SHHS visit 2 (to the nasion, and
upright) to correlate positively. Their sign is not known, and neither is that of a bipolar or unnamed derivation: what
is measured there is told and not weighed.

Epochs of sleep with slow waves are found in the signals themselves, never in a scoring, so that a night is the same with
and without one; and by amplitudes, so that a night upside down has the same epochs and evidence of the other sign.

Each piece of evidence is a log likelihood ratio that no length of recording raises beyond 50:1, since people and
electrodes differ (the vignette finds no measure that settles every night). The channels' states are weighed together,
all 2^n of them. A channel is turned over if the probability that it is upside down is at least 0.95; down to 0.05 it is
``undecided`` and stays as it is.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.signals.cohorts.cohort import Cohort, KnownPolarity
from sleepfm.signals.quality import UNUSABLE, Quality
from sleepfm.signals.slow_waves import slow_part, slow_wave_epochs

Decision = Literal["upright", "inverted", "undecided"]

EEG = ("EEG_C3", "EEG_C4")
EOG = ("EOG_L", "EOG_R")
_ELECTRODE = {"EEG_C3": "C3", "EEG_C4": "C4", "EOG_L": "E1", "EOG_R": "E2"}
# Channels that have an up and a down that can be told.
POLAR = (*EEG, *EOG, "ECG")

# How likely a channel is upside down before its signal is seen, by what is documented of the cohort.
PRIOR: dict[KnownPolarity, float] = {"inverted": 0.98, "mixed": 0.5, "unknown": 0.06, "upright": 0.01}
# Share of recordings in which all channels of the head have one polarity.
_TOGETHER = 1 / 3
SURE = 0.95
_MOST = math.log(50.0)
# Effects that say nothing, and the least number of epochs that says anything.
_SKEW_MARGIN, _CORRELATION_MARGIN, _R_WAVE_MARGIN = 0.05, 0.1, 0.3
_LEAST_EPOCHS = 20
_ECG_EPOCHS = 120
_UNFIT = UNUSABLE | Quality.OUT_OF_RANGE
# Derivations in which an upright channel's slow waves are negative.
_MASTOID = re.compile(r"(C3|C4|E1|E2)-(M1|M2|A1|A2|linked mastoids|linked ears)", re.IGNORECASE)


@dataclass(frozen=True)
class Polarity:
    """What was decided of a channel.

    Attributes:
        decision: ``inverted`` means that it was turned over.
        probability: that it was recorded upside down, all evidence weighed.
        known: what the cohort says.
        asymmetry: mean third standardised moment of the second difference of the slow EEG, negated, which is negative where
            negative peaks are the sharper ones (of the ECG itself); None where too few epochs have slow waves.
        agreement: mean correlation of slow waves with other channels.
        weighed: those of ``agreement`` whose sign is known, and that were weighed.
        epochs: how many of them were judged.
    """

    decision: Decision
    probability: float
    known: KnownPolarity
    asymmetry: float | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    weighed: tuple[str, ...] = ()
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
            "agreement_weighed": list(self.weighed),
            "epochs": self.epochs,
        }


@dataclass
class _Evidence:
    """Of one channel: log likelihood ratio for being upside down, and how it came about."""

    ratio: float = 0.0
    asymmetry: float | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    weighed: list[str] = field(default_factory=list)
    epochs: int = 0


def decide_polarity(
    channels: Mapping[str, NDArray[np.float32]],
    quality: Mapping[str, NDArray[np.uint8]],
    scale: Mapping[str, float],
    derivation: Mapping[str, str],
    cohort: Cohort,
) -> dict[str, Polarity]:
    """The polarity of each of ``channels`` that has one.

    Args:
        channels: filtered signals [E * 3000] at 100 Hz.
        quality: bits of :class:`sleepfm.signals.quality.Quality`, [E].
        scale: what one unit of the signal is in the canonical unit (the interquartile range of a scaled signal).
        derivation: how each channel was really made, electrode and reference (``E1-M2``), as the montage has it.
    """
    names = [name for name in POLAR if name in channels]
    evidence = {name: _Evidence() for name in names}
    slow = {
        name: slow_part(channels[name], scale[name], (quality[name] & _UNFIT) == 0) for name in (*EEG, *EOG) if name in channels
    }
    known_sign = {name: has_known_sign(name, derivation.get(name, "")) for name in slow}
    brain = [name for name in EEG if name in slow]
    asleep = {name: slow_wave_epochs(slow[name], [slow[eye] for eye in EOG if eye in slow]) for name in brain}
    # C3 and C4 show one brain: between them they say no more than one.
    share = 1.0 / max(1, sum(known_sign[name] for name in brain))
    for name in brain:
        evidence[name].epochs = int(asleep[name].sum())
        if known_sign[name]:
            # The second difference is largest, and positive, at sharp negative peaks.
            bends = -np.diff(slow[name].epochs[asleep[name]], n=2, axis=1)
            _asymmetry(evidence[name], bends, -share, _SKEW_MARGIN)
    if "ECG" in channels:
        beats = channels["ECG"].reshape(-1, EPOCH_SAMPLES)[(quality["ECG"] & _UNFIT) == 0]
        beats = beats[:: max(1, len(beats) // _ECG_EPOCHS)]
        evidence["ECG"].epochs = len(beats)
        _asymmetry(evidence["ECG"], beats, 1.0, _R_WAVE_MARGIN)
    together: dict[tuple[str, str], float] = {}
    for one, other in itertools.combinations(slow, 2):
        if one not in EEG:  # two EOG move against each other
            continue
        both = asleep[one] & (asleep[other] if other in EEG else slow[other].fit)
        weight = (1.0 if other in EEG else share) * (known_sign[one] and known_sign[other])
        together[one, other] = _agreement(evidence, one, other, slow[one].epochs[both], slow[other].epochs[both], weight)
    known = {name: cohort.polarity.get(name, "unknown") for name in names}
    alike = [name for name in slow if known_sign[name]]
    probability = _weigh(evidence, together, {name: PRIOR[known[name]] for name in names}, alike)
    return {
        name: Polarity(
            decision=_decision(probability[name], evidence[name].ratio),
            probability=probability[name],
            known=known[name],
            asymmetry=evidence[name].asymmetry,
            agreement=evidence[name].agreement,
            weighed=tuple(evidence[name].weighed),
            epochs=evidence[name].epochs,
        )
        for name in names
    }


def _decision(probability: float, own: float) -> Decision:
    """``own`` is the channel's own evidence: one that looks upright itself is turned over on nothing else's word."""
    if probability >= SURE and own >= 0.0:
        return "inverted"
    return "upright" if probability <= 1.0 - SURE else "undecided"


def has_known_sign(channel: str, derivation: str) -> bool:
    """Whether slow waves are negative in ``derivation`` of an upright ``channel``: its electrode against mastoid or ear."""
    match = _MASTOID.fullmatch(derivation.strip())
    return match is not None and match[1].upper() == _ELECTRODE[channel]


def was_weighed(described: Mapping[str, Any]) -> bool:
    """Whether the signal had a say in a decision that :meth:`Polarity.describe` told: it has none where the sign is not known or
    too few epochs have slow waves.
    """
    return described.get("asymmetry") is not None or bool(described.get("agreement_weighed"))


def _asymmetry(evidence: _Evidence, epochs: NDArray[np.float32], weight: float, margin: float) -> None:
    """Third standardised moment of each epoch; ``weight`` is positive where an upright signal's is positive."""
    if len(epochs) < _LEAST_EPOCHS:
        return
    centred = epochs - epochs.mean(axis=1, keepdims=True)
    square = centred * centred
    moment = (square * centred).mean(axis=1) / np.maximum(square.mean(axis=1), 1e-12) ** 1.5
    moment = np.clip(moment, -1.0, 1.0) if margin < 0.1 else moment
    evidence.asymmetry = float(moment.mean())
    evidence.ratio = -weight * _log_ratio(moment, margin)


def _agreement(
    evidence: dict[str, _Evidence], one: str, other: str, first: NDArray[np.float32], second: NDArray[np.float32], weight: float
) -> float:
    """Log likelihood ratio for both being turned alike; ``weight`` of 0 measures and tells only."""
    evidence[other].epochs = evidence[other].epochs or len(first)
    if len(first) < _LEAST_EPOCHS:
        return 0.0
    first, second = (epochs - epochs.mean(axis=1, keepdims=True) for epochs in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation = (first * second).sum(axis=1) / np.maximum(scale, 1e-12)
    for channel, partner in ((one, other), (other, one)):
        evidence[channel].agreement[partner] = float(correlation.mean())
        if weight:
            evidence[channel].weighed.append(partner)
    return weight * _log_ratio(correlation, _CORRELATION_MARGIN)


def _log_ratio(values: NDArray[np.floating[Any]], margin: float) -> float:
    """How much likelier the mean of ``values`` (one an epoch) is positive than negative, beyond ``margin``."""
    from scipy.special import log_ndtr

    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    beyond = max(0.0, abs(mean) - margin) / max(error, 1e-6)
    ratio = min(_MOST, float(log_ndtr(beyond) - log_ndtr(-beyond)))
    return math.copysign(ratio, mean)


def _weigh(
    evidence: Mapping[str, _Evidence],
    together: Mapping[tuple[str, str], float],
    prior: Mapping[str, float],
    alike: Sequence[str],
) -> dict[str, float]:
    """Probability of each channel to be upside down, summed over all states of all channels.

    Channels are upside down each for itself, or those of ``alike`` have one polarity, as one converter left them (CFS,
    CCSHS).
    """
    names = list(evidence)
    others = [name for name in names if name not in alike]
    all_turned = _TOGETHER * min((prior[name] for name in alike), default=0.0)
    none_turned = _TOGETHER * min((1.0 - prior[name] for name in alike), default=0.0)
    weights: dict[tuple[bool, ...], float] = {}
    for state in itertools.product((False, True), repeat=len(names)):
        turned = dict(zip(names, state, strict=True))
        chance = {name: prior[name] if turned[name] else 1.0 - prior[name] for name in names}
        common = math.prod(chance[name] for name in alike) * (1.0 - all_turned - none_turned)
        common += all_turned * all(turned[name] for name in alike) + none_turned * (not any(turned[name] for name in alike))
        total = math.log(common) + sum(math.log(chance[name]) for name in others)
        total += sum(evidence[name].ratio for name in names if turned[name])
        total += sum(ratio for (one, other), ratio in together.items() if turned[one] == turned[other])
        weights[state] = total
    largest = max(weights.values())
    odds = {state: math.exp(total - largest) for state, total in weights.items()}
    whole = sum(odds.values())
    return {name: sum(part for state, part in odds.items() if state[place]) / whole for place, name in enumerate(names)}
