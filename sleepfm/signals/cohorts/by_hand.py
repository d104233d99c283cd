"""Channels that a user names by hand, in place of a cohort's rules for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sleepfm.constants import CHANNELS
from sleepfm.errors import UsageError
from sleepfm.signals.cohorts.cohort import ChannelRule, Cohort


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
    whole = ChannelRule(signal=(signal,), derivation=signal)
    active, colon, references = signal.rpartition(":")
    labels = [label.strip() for label in references.split(",")]
    if not colon or not active.strip() or not all(labels):
        return (whole,)
    named = f"{active.strip()}-{'+'.join(labels)}"
    return whole, ChannelRule(signal=(active.strip(),), reference=tuple((label,) for label in labels), derivation=named)
