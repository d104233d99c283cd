"""Channels that a user names by hand, in place of a cohort's rules for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sleepfm.constants import CHANNELS
from sleepfm.errors import UsageError
from sleepfm.signals.cohorts.cohort import ChannelRule, Cohort
from sleepfm.signals.cohorts.label_grammar import read_label

# Both mastoids or ears, by the grammar of labels.
_LINKED = ({"M1", "M2"}, {"linked"})


def parse_channels(texts: Sequence[str]) -> dict[str, str]:
    """Canonical name to the signal that makes it, from texts such as ``EEG_C4=C4:A1``.

    Raises:
        UsageError: a text of another form, an unknown or repeated canonical name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, signal = text.partition("=")
        name, signal = name.strip(), signal.strip()
        if not equals or not signal:
            raise UsageError(f"--channel {text}: write CHANNEL=SIGNAL or CHANNEL=SIGNAL:REFERENCE, such as EEG_C4=C4:A1")
        if name not in CHANNELS:
            raise UsageError(f"--channel {text}: {name!r} is not a canonical channel; these are {', '.join(CHANNELS)}")
        if name in found:
            raise UsageError(f"--channel {text}: {name} is named twice")
        found[name] = signal
    return found


def with_channels(cohort: Cohort, channels: Mapping[str, str]) -> Cohort:
    """``cohort`` with ``channels`` made as they say, and by no other rule.

    ``A:B`` is the signal whose label that is, else ``A`` less ``B``; ``A:B,C`` subtracts the mean of ``B`` and ``C``.
    """
    by_hand = {name: _rules(signal) for name, signal in channels.items()}
    return cohort.model_copy(update={"channels": {**cohort.channels, **by_hand}}) if by_hand else cohort


def _rules(signal: str) -> tuple[ChannelRule, ...]:
    whole = ChannelRule(signal=(signal,), derivation=_derivation(signal))
    active, colon, references = signal.rpartition(":")
    active, labels = active.strip(), [label.strip() for label in references.split(",")]
    if not colon or not active or not all(labels):
        return (whole,)
    named = _derivation(active, labels)
    return whole, ChannelRule(signal=(active,), reference=tuple((label,) for label in labels), derivation=named)


def _derivation(active: str, references: Sequence[str] = ()) -> str:
    """Electrode and reference as cohort files write them (``C4-M1``), since polarity is decided by these; the labels themselves
    where they do not name electrodes.
    """
    written = f"{active}-{'+'.join(references)}" if references else active
    said = [label for text in (active, *references) if (label := read_label(text)) is not None]
    # What signals were recorded against falls out of their difference only where it is the same.
    if len(said) <= len(references) or len({label.reference for label in said}) > 1:
        return written
    against = {label.electrode for label in said[1:]} if references else {said[0].reference}
    reference = "linked mastoids" if against in _LINKED else "+".join(sorted(against))
    return f"{said[0].electrode}-{reference}" if reference else written
