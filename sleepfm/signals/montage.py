"""From a recording's own labels to canonical channels, by the cohort's rules. Never guesses: see :func:`resolve`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT
from sleepfm.errors import MontageError
from sleepfm.signals.cohort import Cohort, Rule, normalise
from sleepfm.signals.recording import Recording, SignalInfo
from sleepfm.signals.units import factor


UNKNOWN_LABEL = "no signal of a known label"


@dataclass(frozen=True)
class Derivation:
    """How one canonical channel is made: ``scale * (signal - mean(references))``, by number of signal."""

    channel: str
    signal: int
    references: tuple[int, ...]
    scale: float
    description: str


@dataclass
class Montage:
    """What :func:`resolve` found; ``missing`` and ``ambiguous`` say why a channel is not there."""

    channels: dict[str, Derivation] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)


def resolve(recording: Recording, cohort: Cohort) -> Montage:
    """Apply the cohort's rules in their order of preference to every canonical channel it has rules for.

    A label that fits but whose unit or rate does not is passed over with its reason; two signals that fit the same rule
    make the channel ambiguous, with both named: it is then left out until a rule decides.
    """
    montage = Montage()
    for channel, rules in cohort.channels.items():
        reasons: list[str] = []
        for rule in rules:
            candidates = _fitting(recording, channel, rule, cohort, reasons)
            if len(candidates) > 1:
                named = ", ".join(f"{recording.signals[i].label!r} (signal {i + 1})" for i in candidates)
                montage.ambiguous[channel] = f"{named} all fit; name one in the cohort's rules"
                break
            if candidates:
                derivation = _derivation(recording, channel, rule, candidates[0], reasons)
                if derivation is not None:
                    montage.channels[channel] = derivation
                    break
        else:
            montage.missing[channel] = "; ".join(reasons) or UNKNOWN_LABEL
    return montage


def derive(recording: Recording, derivation: Derivation) -> tuple[NDArray[np.float32], float]:
    """The channel in its canonical unit at its native rate: ``([T], rate in Hz)``, NaN inside gaps."""
    signal = recording.read(derivation.signal)
    for reference in derivation.references:
        signal -= recording.read(reference) / np.float32(len(derivation.references))
    signal *= np.float32(derivation.scale)
    return signal, recording.signals[derivation.signal].rate


def _fitting(recording: Recording, channel: str, rule: Rule, cohort: Cohort, reasons: list[str]) -> list[int]:
    wanted = {normalise(label) for label in rule.signal}
    fitting = []
    for index, signal in enumerate(recording.signals):
        if normalise(signal.label) not in wanted:
            continue
        fault = _fault(signal, channel, rule, cohort)
        if fault:
            reasons.append(f"{signal.label!r}: {fault}")
        else:
            fitting.append(index)
    return fitting


def _fault(signal: SignalInfo, channel: str, rule: Rule, cohort: Cohort) -> str:
    lowest = cohort.minimum_rate.get(channel, 0.0)
    if signal.rate < lowest:
        return f"{signal.rate:g} Hz is below the {lowest:g} Hz that {channel} needs"
    try:
        factor(rule.unit or signal.unit, CHANNEL_UNIT[channel])
    except MontageError as error:
        return str(error)
    return ""


def _derivation(recording: Recording, channel: str, rule: Rule, signal: int, reasons: list[str]) -> Derivation | None:
    info = recording.signals[signal]
    references: list[int] = []
    for labels in [rule.reference] if rule.reference else [[label] for label in rule.linked]:
        found = _reference(recording, info, labels)
        if found is None:
            reasons.append(f"{info.label!r}: no single reference among {labels} at its rate and unit")
            return None
        references.append(found)
    scale = factor(rule.unit or info.unit, CHANNEL_UNIT[channel]) * (-1.0 if rule.invert else 1.0)
    text = info.label
    if references:
        text += " - " + " - ".join(recording.signals[i].label for i in references)
    if rule.invert:
        text += ", inverted"
    if rule.note:
        text += f" ({rule.note})"
    return Derivation(channel, signal, tuple(references), scale, text)


def _reference(recording: Recording, signal: SignalInfo, labels: list[str]) -> int | None:
    wanted = {normalise(label) for label in labels}
    found = [
        index
        for index, other in enumerate(recording.signals)
        if normalise(other.label) in wanted and other.unit == signal.unit and other.n_samples == signal.n_samples
    ]
    return found[0] if len(found) == 1 else None
