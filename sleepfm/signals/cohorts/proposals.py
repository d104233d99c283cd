"""Rules that would map signals which no rule of a cohort maps: proposals for a person to check, never applied."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from sleepfm.constants import CHANNEL_UNIT
from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.cohort import normalise_label
from sleepfm.signals.cohorts.label_grammar import read_label
from sleepfm.signals.cohorts.montage import Montage
from sleepfm.signals.cohorts.units import to_canonical
from sleepfm.signals.recording import Recording, SignalInfo

# What an electrode is a signal of.
_BY_ELECTRODE = {"C3": "EEG_C3", "C4": "EEG_C4", "E1": "EOG_L", "EOG L": "EOG_L", "E2": "EOG_R", "EOG R": "EOG_R"}
_BY_KIND = {"EMG": "EMG_CHIN", "ECG": "ECG"}
# Words in a label, and the channel that they may mean, in order.
_WORDS = (
    ("", r"leg|tib|arm|masseter|intercost|snor|pulse|pleth|light|pos|imp|co2|puls"),
    ("EEG_C3", r"c3"),
    ("EEG_C4", r"c4"),
    ("EOG_L", r"loc|eogl|(^l|left)eog"),
    ("EOG_R", r"roc|eogr|(^r|right)eog"),
    ("SPO2", r"sp?a?o2|sat|oxi|oxy"),
    ("EMG_CHIN", r"chin|emg|ment"),
    ("ECG", r"e[ck]g|cardio"),
    ("THORAX", r"thor|chest|rib"),
    ("ABDOMEN", r"abd|belly|stomach"),
    ("AIRFLOW", r"flow|therm|nasal|cannul|ptaf|press"),
)


@dataclass(frozen=True)
class Unmapped:
    """A signal that is part of no channel; ``channel`` is what it may be, and ``rule`` the line that says so, or empty."""

    label: str
    rate: float
    unit: str
    channel: str = ""
    rule: str = ""


def unmapped(recording: Recording, montage: Montage, minimum_rate: Mapping[str, float]) -> list[Unmapped]:
    """The signals of ``recording`` that ``montage`` leaves, in order, each with a proposal where its label suggests one."""
    used = {source.index for made in montage.channels.values() for source in (made.active, *made.references)}
    named = Counter(normalise_label(signal.label) for signal in recording.signals)
    found = []
    for index, signal in enumerate(recording.signals):
        if index in used:
            continue
        channel = _channel(signal.label)
        # A rule by a label cannot tell two signals apart that share it.
        alone = named[normalise_label(signal.label)] == 1
        fits = alone and channel and channel not in montage.channels and signal.rate >= minimum_rate.get(channel, 0.0)
        rule = _rule(channel, signal) if fits else ""
        found.append(Unmapped(signal.label, signal.rate, signal.unit, channel if rule else "", rule))
    return found


def _channel(label: str) -> str:
    """The channel that ``label`` may mean, or empty."""
    said = read_label(label)
    if said is not None:
        return _BY_ELECTRODE.get(said.electrode) or _BY_KIND.get(said.kind, "")
    text = re.sub(r"[^a-z0-9]", "", label.casefold())
    return next((channel for channel, words in _WORDS if re.search(words, text)), "")


def _rule(channel: str, signal: SignalInfo) -> str:
    """The line of YAML below ``channels``; empty where the signal's unit is none of the channel's."""
    rule = {"signal": [signal.label], "derivation": signal.label.strip()}
    if not signal.unit.strip():
        rule["unit"] = CHANNEL_UNIT[channel]
    try:
        to_canonical(str(rule.get("unit", signal.unit)).strip(), CHANNEL_UNIT[channel])
    except MontageError:
        return ""
    return (
        f"{channel}: {yaml.safe_dump([rule], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()}"
    )
