"""Montage: which signals of a recording make its canonical channels, by the cohort's rules, never by guess."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT, CHANNELS
from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.cohort import ChannelRule, Cohort, normalise_label
from sleepfm.signals.cohorts.units import to_canonical
from sleepfm.signals.recording import Recording, SignalInfo

NO_LABEL = "no signal of that name"


@dataclass(frozen=True)
class Source:
    """A signal of the recording and the factor to the canonical unit."""

    index: int
    label: str
    unit: str
    factor: float
    header_inverted: bool


@dataclass(frozen=True)
class Derivation:
    """How a canonical channel is made: ``active`` minus the mean of ``references``, upside down if ``invert``.

    ``limits`` is the range of the recorder in the canonical unit, None for a difference of signals; ``step`` that of its
    converter, of all its signals together; ``choice`` counts the cohort's rules for this channel from 1 in order of preference.
    """

    channel: str
    active: Source
    references: tuple[Source, ...]
    rate: float
    limits: tuple[float, float] | None
    step: float
    derivation: str
    substitute: str
    invert: bool
    choice: int

    def describe(self) -> dict[str, Any]:
        """What to keep beside the data, in JSON types."""
        sources = (self.active, *self.references)
        return {
            "signal": self.active.label,
            "reference": [source.label for source in self.references],
            "derivation": self.derivation,
            "substitute": self.substitute,
            "choice": self.choice,
            "rate": self.rate,
            "unit": self.active.unit,
            "factor": self.active.factor,
            "polarity": {
                "header_inverted": [source.label for source in sources if source.header_inverted],
                "inverted_by_rule": self.invert,
            },
        }


@dataclass(frozen=True)
class Montage:
    """Canonical channels found; for the others why they are missing, or which candidates make them ambiguous."""

    channels: dict[str, Derivation] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)


class _AmbiguousError(Exception):
    """Several signals fit one place of a rule; the message names them."""


class _UnfitError(Exception):
    """No signal fits one place of a rule; the message says why, empty where no label matched."""


class _SameLabelError(Exception):
    """Signals of one and the same label fit one place of a rule; the message names them."""


def resolve(recording: Recording, cohort: Cohort) -> Montage:
    """Apply ``cohort``'s rules to the recording's labels, units and rates.

    The first rule of a channel that finds exactly one fitting signal for each of its places is taken. More than
    one is ambiguous, whatever later rules would say; where these have one and the same label nothing in the file tells them
    apart, and the channel is missing.
    """
    montage = Montage()
    for channel in CHANNELS:
        reasons = []
        for choice, rule in enumerate(cohort.channels.get(channel, ()), start=1):
            try:
                montage.channels[channel] = _apply(recording, cohort, channel, rule, choice)
                break
            except _AmbiguousError as error:
                montage.ambiguous[channel] = str(error)
                break
            except _SameLabelError as error:
                montage.missing[channel] = str(error)
                break
            except _UnfitError as error:
                reasons += [str(error)] if str(error) else []
        else:
            montage.missing[channel] = "; ".join(dict.fromkeys(reasons)) or NO_LABEL
    return montage


def derive(recording: Recording, derivation: Derivation) -> tuple[NDArray[np.float32], float]:
    """Samples [T] in the canonical unit at the native rate (Hz), gaps NaN. Raises :class:`RecordingError`."""
    signal = recording.read(derivation.active.index)
    signal *= np.float32(derivation.active.factor)
    for reference in derivation.references:
        other = recording.read(reference.index)
        other *= np.float32(reference.factor / len(derivation.references))
        signal -= other
    if derivation.invert:
        np.negative(signal, out=signal)
    return signal, derivation.rate


def _apply(recording: Recording, cohort: Cohort, channel: str, rule: ChannelRule, choice: int) -> Derivation:
    active = _find(recording, cohort, channel, rule, rule.signal, rule.occurrence)
    references = tuple(_find(recording, cohort, channel, rule, labels) for labels in rule.reference)
    info = recording.signals[active.index]
    for reference in references:
        other = recording.signals[reference.index]
        if (other.rate, other.n_samples) != (info.rate, info.n_samples):
            raise _UnfitError(
                f"{info.label!r} at {info.rate:g} Hz and its reference {other.label!r} at {other.rate:g} Hz cannot be subtracted"
            )
    ends = sorted((info.physical_min * active.factor, info.physical_max * active.factor))
    limits = None if references else (-ends[1], -ends[0]) if rule.invert else (ends[0], ends[1])
    steps = [abs(source.factor) * recording.signals[source.index].step for source in references]
    step = abs(active.factor) * info.step + sum(steps) / max(1, len(steps))
    return Derivation(
        channel=channel,
        active=active,
        references=references,
        rate=info.rate,
        limits=limits,
        step=step,
        derivation=rule.derivation,
        substitute=rule.substitute,
        invert=rule.invert,
        choice=choice,
    )


def _find(
    recording: Recording, cohort: Cohort, channel: str, rule: ChannelRule, labels: tuple[str, ...], occurrence: int | None = None
) -> Source:
    wanted = {normalise_label(label) for label in labels}
    fitting: list[Source] = []
    unfit: list[str] = []
    met = Counter[str]()
    for index, info in enumerate(recording.signals):
        label = normalise_label(info.label)
        if label not in wanted:
            continue
        met[label] += 1
        if occurrence is not None and met[label] != occurrence:
            continue
        try:
            fitting.append(_fit(index, info, cohort, channel, rule))
        except MontageError as error:
            unfit.append(f"{info.label!r}: {error}")
    if len(fitting) > 1:
        names = ", ".join(f"{source.label!r} (signal {source.index + 1})" for source in fitting)
        if len({normalise_label(source.label) for source in fitting}) == 1:
            raise _SameLabelError(f"{names} have one label; say which with `occurrence: 1` and so on in a cohort file's rule")
        raise _AmbiguousError(f"{names} all fit; name one in a cohort file")
    if not fitting:
        if not unfit and labels is not rule.signal:
            unfit = [f"{'/'.join(rule.signal[:3])} has no reference {'/'.join(labels[:3])}"]
        raise _UnfitError("; ".join(unfit))
    return fitting[0]


def _fit(index: int, info: SignalInfo, cohort: Cohort, channel: str, rule: ChannelRule) -> Source:
    if info.problem:
        raise MontageError(info.problem)
    least = cohort.minimum_rate.get(channel, 0.0)
    if info.rate < least:
        raise MontageError(f"{info.rate:g} Hz is below the {least:g} Hz that {channel} needs")
    unit = info.unit.strip() or rule.unit
    factor = to_canonical(unit, CHANNEL_UNIT[channel])
    return Source(index, info.label, unit, factor, info.inverted)
