"""Rules that would map signals which no rule of a cohort maps: proposals for a person to check, never applied."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sleepfm.constants import CHANNEL_UNIT, CHANNELS
from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.cohort import normalise_label
from sleepfm.signals.cohorts.label_grammar import Label, read_label
from sleepfm.signals.cohorts.montage import Montage
from sleepfm.signals.cohorts.units import to_canonical
from sleepfm.signals.listing import list_files
from sleepfm.signals.recording import Recording, SignalInfo

# What an electrode is a signal of, and the mastoids against which it is one, the first of them rather than the other.
_BY_ELECTRODE = {"C3": "EEG_C3", "C4": "EEG_C4", "E1": "EOG_L", "EOG L": "EOG_L", "E2": "EOG_R", "EOG R": "EOG_R"}
_BY_KIND = {"EMG": "EMG_CHIN", "ECG": "ECG"}
_MASTOIDS = {"C3": ("M2", "M1"), "C4": ("M1", "M2"), "E1": ("M2", "M1"), "E2": ("M1", "M2")}
# Whole words, and words or parts of them, of labels that say something else than the channel whose word stands beside them: other
# muscles (RAT and LAT are the anterior tibials), what is computed of an ECG, pressure and flow of a device.
_OTHER_WORDS = frozenset(["rat", "lat", "ta", "hr", "hf", "rr", "bpm", "bp", "pes", "lim", "qrs", "sqi"])
_OTHER = (
    r"leg|tib|arm|masseter|intercost|snor|pul[sz]|pleth|light|pos|imp|co2|rate|freq|herz|trig|beat|status|qual|pap|mask|leak|titr|"
    r"blood|(o|^)esoph|temp|machine"
)
# Words in a label, and the channel that they may mean, in order.
_WORDS = (
    ("", _OTHER),
    ("EEG_C3", r"c3"),
    ("EEG_C4", r"c4"),
    ("EOG_L", r"loc|eogl|(^l|left)eog"),
    ("EOG_R", r"roc|eogr|(^r|right)eog"),
    ("SPO2", r"sp?a?o2|sat|oxi|oxy"),
    # Which muscle it is has to be said, unless nothing is but that it is one.
    ("EMG_CHIN", r"chin|submen|mental|^(ch|channel|kanal|canal|voie)?\d*emg\d*$"),
    ("", r"emg"),
    ("ECG", r"e[ck]g|cardio"),
    ("THORAX", r"thor|chest|rib"),
    ("ABDOMEN", r"abd|belly|stomach"),
    ("AIRFLOW", r"flow|therm|nasal|naspres|cannul|ptaf"),
)

# Of files that scorings are exported as.
SCORING_ENDINGS = (".csv", ".tsv", ".txt", ".xml", ".annot", ".eannot")


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
        rule = _rule(channel, signal, recording) if fits else ""
        found.append(Unmapped(signal.label, signal.rate, signal.unit, channel if rule else "", rule))
    return found


def scoring_patterns(recordings: Sequence[Path], root: Path) -> Counter[str]:
    """Patterns for ``scoring.files`` by which files below ``root`` would be scorings of ``recordings``, and of how many each.

    A file may be the scoring of a recording if it has the recording's name in its own and is of a kind that scorings are.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in recordings:
        by_stem[path.stem].append(path)
    found: dict[str, set[Path]] = defaultdict(set)
    for file in list_files(root, SCORING_ENDINGS, unlisted=_already_told):
        stem = next((part for part in _parts(file.name) if part in by_stem), "")
        for path in by_stem[stem] if stem else ():
            if pattern := _pattern(path, file, stem):
                found[pattern].add(path)
    return Counter({pattern: len(paths) for pattern, paths in found.items()})


def _already_told(error: OSError) -> None:
    """Of a folder that cannot be listed whoever lists its recordings says so."""


def _parts(name: str) -> Iterator[str]:
    """What may be a recording's name in ``name``, the longest first: no number and no word is cut in two."""

    def cut(place: int) -> bool:
        around = name[max(place - 1, 0) : place + 1]
        return 0 < place < len(name) and (around.isdigit() or around.isalpha())

    places = [place for place in range(len(name) + 1) if not cut(place)]
    pairs = [(begin, end) for begin in places for end in places if begin < end]
    return (name[begin:end] for begin, end in sorted(pairs, key=lambda pair: pair[0] - pair[1]))


def _pattern(recording: Path, file: Path, stem: str) -> str:
    """How a cohort file would name ``file``: in the recording's folder, or in one below it or below a folder above it."""
    name = _written(file.name).replace(_written(stem), "{stem}")
    if file.parent == recording.parent:
        return name
    above = [folder for folder in (recording.parent, *recording.parents) if folder in file.parents]
    if not above:
        return ""
    folders = [
        "{folder}" if part == recording.parent.name else _written(part) for part in file.parent.relative_to(above[0]).parts
    ]
    # Of a file alone in a folder above nobody knows which recording of that name it scores.
    return "/".join([*folders, name]) if folders else ""


def _written(name: str) -> str:
    """``name`` as a part of a pattern."""
    quoted = "".join(f"[{character}]" if character in "*?[" else character for character in name)
    return quoted.replace("{", "{{").replace("}", "}}")


def _channel(label: str) -> str:
    """The channel that ``label`` may mean, or empty."""
    said = read_label(label) or _electrodes(label)
    if said is not None and said.kind in ("EEG", "EOG"):
        # Against anything else it is another derivation.
        return _BY_ELECTRODE.get(said.electrode, "") if said.reference in ("", "M1", "M2", "linked") else ""
    if said is not None:
        return _BY_KIND[said.kind]
    if _OTHER_WORDS.intersection(re.split(r"[\W_\d]+", label.casefold())):
        return ""
    text = re.sub(r"[^a-z0-9]", "", label.casefold())
    return next((channel for channel, words in _WORDS if re.search(words, text)), "")


def _electrodes(label: str) -> Label | None:
    """The EEG or EOG electrodes at the end of ``label`` ("Ch 3 C4/M1"), with those after which it has no more words."""
    words = re.split(r"(?<=\s)", label.strip())
    said = [read_label("".join(words[place:])) for place in range(len(words))]
    return next((found for found in said if found is not None and found.electrode in (*_MASTOIDS, "M1", "M2")), None)


def _rule(channel: str, signal: SignalInfo, recording: Recording) -> str:
    """The line of YAML below ``channels``; empty where the signal's unit is none of the channel's, or where it is against a
    reference that the recording has and that cannot be subtracted.
    """
    said = _electrodes(signal.label)
    rule: dict[str, Any] = {"signal": [signal.label]}
    derivation = str(said) if said is not None and said.reference else signal.label.strip()
    if said is not None and not said.reference:
        mastoids = [(str(_electrodes(other.label)), other) for other in recording.signals]
        found = [(side, other) for wanted in _MASTOIDS[said.electrode] for side, other in mastoids if side == wanted]
        if found:
            side, reference = found[0]
            alike = (reference.rate, reference.n_samples) == (signal.rate, signal.n_samples)
            if not alike or sum(normalise_label(other.label) == normalise_label(reference.label) for _, other in mastoids) > 1:
                return ""
            rule["reference"] = [[reference.label]]
            derivation = f"{said.electrode}-{side}"
    rule["derivation"] = derivation
    if not signal.unit.strip() and CHANNEL_UNIT[channel]:
        rule["unit"] = CHANNEL_UNIT[channel]
    try:
        to_canonical(str(rule.get("unit", signal.unit)).strip(), CHANNEL_UNIT[channel])
    except MontageError:
        return ""
    return _line(channel, [rule])


def _line(channel: str, rules: list[dict[str, Any]]) -> str:
    text = yaml.safe_dump(rules, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return f"{channel}: {text.strip()}"


def merged(counts: Mapping[str, int]) -> list[tuple[str, list[int]]]:
    """Proposed lines with one for each channel, since a key stands once in a file, and the counts of those that it is made of.

    Those that propose one channel are its rules in order of their counts: of a recording that several fit the first is taken.
    """
    channels: dict[str, tuple[list[dict[str, Any]], list[int]]] = {}
    for line, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        ((channel, rules),) = yaml.safe_load(line).items()
        kept, numbers = channels.setdefault(channel, ([], []))
        kept += rules
        numbers.append(count)
    return [(_line(name, channels[name][0]), channels[name][1]) for name in CHANNELS if name in channels]
