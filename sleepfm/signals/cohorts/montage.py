"""Montage: which signals of a recording make its canonical channels, by the cohort's rules, never by guess."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT, CHANNELS
from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.cohort import ChannelRule, Cohort, normalise_label
from sleepfm.signals.cohorts.label_grammar import read_label, without_running_numbers
from sleepfm.signals.cohorts.units import to_canonical
from sleepfm.signals.recording import Recording, SignalInfo

NO_LABEL = "no signal of that name"
# What the data contract says of a signal that has a canonical channel's name, where the caller named it so.
_CANONICAL = {
    "EEG_C3": "C3-M2",
    "EEG_C4": "C4-M1",
    "EOG_L": "left EOG",
    "EOG_R": "right EOG",
    "EMG_CHIN": "chin",
    "SPO2": "pulse oximetry",
}


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
    converter, of all its signals together; ``choice`` counts the cohort's rules for this channel from 1 in order of preference,
    and is 0 where the signal has the canonical channel's name.
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


class _Labels:
    """The labels of a recording, read once.

    Attributes:
        texts: without MNE's running numbers; ``plain``: these normalised.
        own: normalised as they stand, for rules that list them so.
        said: what each says by the grammar ("C3-M2"), or empty.
    """

    def __init__(self, recording: Recording, cohort: Cohort) -> None:
        labels = [signal.label for signal in recording.signals]
        self.texts = without_running_numbers(labels)
        self.own = [normalise_label(label) for label in labels]
        self.plain = [normalise_label(text) for text in self.texts]
        self.said = ["" if (read := read_label(text)) is None else str(read) for text in self.texts]
        self._listed = defaultdict[str, set[str]](set)
        for channel, rules in cohort.channels.items():
            for label in (normalise_label(text) for rule in rules for text in rule.signal):
                self._listed[label].add(channel)

    def belongs_elsewhere(self, index: int, channel: str) -> bool:
        """Whether a rule of another channel than ``channel`` lists this label as its signal."""
        listed = self._listed[self.own[index]] | self._listed[self.plain[index]]
        return bool(listed) and channel not in listed


def resolve(recording: Recording, cohort: Cohort) -> Montage:
    """Apply ``cohort``'s rules to the recording's labels, units and rates.

    The first rule of a channel that finds exactly one fitting signal for each of its places is taken. More than
    one is ambiguous, whatever later rules would say; where these have one and the same label nothing in the file tells them
    apart, and the channel is missing. A signal with the canonical channel's own name comes before all rules where the recording
    says that its names are meant so (:attr:`Recording.canonical_names`).
    """
    montage = Montage()
    labels = _Labels(recording, cohort)
    for channel in CHANNELS:
        reasons = []
        rules = list(enumerate(cohort.channels.get(channel, ()), start=1))
        if (own := _canonical_rule(recording, labels, channel)) is not None:
            rules.insert(0, (0, own))
        for choice, rule in rules:
            try:
                montage.channels[channel] = _apply(recording, cohort, labels, channel, rule, choice)
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


def _canonical_rule(recording: Recording, labels: _Labels, channel: str) -> ChannelRule | None:
    """The rule for a signal that the caller named ``channel``, None without one.

    Beside a mastoid alone "EEG_C4" may be the electrode C4, as in files that are labelled so: then it is read like any other.
    """
    if not recording.canonical_names or sum(signal.label == channel for signal in recording.signals) != 1:
        return None
    if channel.startswith(("EEG", "EOG")) and not {"M1", "M2"}.isdisjoint(labels.said):
        return None
    return ChannelRule(
        signal=(channel,), derivation=_CANONICAL.get(channel, channel), unit="%" if CHANNEL_UNIT[channel] == "%" else ""
    )


def _apply(recording: Recording, cohort: Cohort, labels: _Labels, channel: str, rule: ChannelRule, choice: int) -> Derivation:
    def find(texts: tuple[str, ...], is_reference: bool) -> Source:
        return _find(recording, cohort, labels, channel, rule, texts, is_reference)

    active = find(rule.signal or rule.electrodes, False)
    references = tuple(find(texts, True) for texts in rule.reference)
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
    recording: Recording,
    cohort: Cohort,
    labels: _Labels,
    channel: str,
    rule: ChannelRule,
    texts: tuple[str, ...],
    is_reference: bool,
) -> Source:
    """The signal that one of ``texts``, labels or what they say, names."""
    occurrence = rule.reference_occurrence if is_reference else rule.occurrence
    if rule.electrodes:
        said = {str(read_label(text)) for text in texts}
        named = [
            index
            for index, text in enumerate(labels.said)
            if text in said and (is_reference or not labels.belongs_elsewhere(index, channel))
        ]
    else:
        wanted = {normalise_label(text) for text in texts}
        named = [i for i in range(len(labels.own)) if labels.own[i] in wanted or labels.plain[i] in wanted]
    fitting: list[Source] = []
    unfit: list[str] = []
    met = Counter[str]()
    for index in named:
        info = recording.signals[index]
        met[labels.plain[index]] += 1
        if occurrence is not None and met[labels.plain[index]] != occurrence:
            continue
        try:
            fitting.append(_fit(index, info, cohort, channel, rule))
        except MontageError as error:
            unfit.append(f"{info.label!r}: {error}")
    if len(fitting) > 1:
        names = ", ".join(f"{source.label!r} (signal {source.index + 1})" for source in fitting)
        if len({labels.plain[source.index] for source in fitting}) == 1:
            first = fitting[0]
            chosen = {"reference_occurrence": 1} if is_reference else {"occurrence": 1, **_narrowed(rule, labels, first)}
            raise _SameLabelError(
                f"{names} have the same label; in a cohort file, choose one by its position: "
                f"{_rule_line(channel, rule.model_copy(update=chosen))}"
            )
        raise _AmbiguousError(f"{names} all match; choose one in a cohort file")
    if not fitting:
        if not unfit and is_reference:
            unfit = [f"{'/'.join((rule.signal or rule.electrodes)[:3])} has no reference {'/'.join(texts[:3])}"]
        raise _UnfitError("; ".join(unfit))
    return fitting[0]


def _narrowed(rule: ChannelRule, labels: _Labels, source: Source) -> dict[str, tuple[str, ...]]:
    """What of ``rule`` names the signal ``source``, and nothing else."""
    return {"electrodes": (labels.said[source.index],)} if rule.electrodes else {"signal": (labels.texts[source.index],)}


def _rule_line(channel: str, rule: ChannelRule) -> str:
    """``rule`` as the line of YAML that a cohort file has below ``channels``."""
    values = {key: value for key, value in rule.model_dump(mode="json").items() if value not in ("", [], None, False)}
    return f"{channel}: {yaml.safe_dump([values], default_flow_style=True, sort_keys=False, width=10_000).strip()}"


def _fit(index: int, info: SignalInfo, cohort: Cohort, channel: str, rule: ChannelRule) -> Source:
    if info.problem:
        raise MontageError(info.problem)
    least = cohort.minimum_rate.get(channel, 0.0)
    if info.rate < least:
        raise MontageError(f"{info.rate:g} Hz is below the {least:g} Hz that {channel} needs")
    unit = info.unit.strip() or rule.unit
    factor = to_canonical(unit, CHANNEL_UNIT[channel])
    return Source(index, info.label, unit, factor, info.inverted)
