"""What a signal's label says: kind of signal, electrode and reference, whatever its spelling.

``C3-M2``, ``EEG C3:A2``, ``EEG(c3_m2)`` and ``C3M2`` are one derivation. A label is, from left to right, the kind of signal
(EDF+ specification, standard texts; it may be left out), an electrode, and what it was recorded against (left out where the
label does not say). Anything stands between them: blanks, ``-``, ``:``, ``/``, ``_``, ``.``, ``#`` and brackets. A label in
which one more word stands (``C3 Imp``, ``EOGr512``, ``EMG Aux1``) says something else and is not read.

A1 and A2 (ears) are M1 and M2 (mastoids), as the AASM manual puts the one in the place of the other. Spellings come from the
lists of labels that docs/channels.md names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Kind = Literal["EEG", "EOG", "EMG", "ECG"]

# What may stand between two words, and inside those that are written with a blank below.
_BETWEEN = r"[\s\-:/_.#()\[\]]*"
_KINDS: dict[str, tuple[Kind, ...]] = {
    # Recorders that take every electrode for EEG put that before all of them (NCHSDB: "EEG LOC-M2", "EEG EKG1").
    "eeg": ("EEG", "EOG", "EMG", "ECG"),
    "eog": ("EOG",),
    "emg": ("EMG",),
    "ecg": ("ECG",),
    "ekg": ("ECG",),
}
# The 10-20 system's, by its old and new names (T3 is T7).
_TEN_TWENTY = (
    *("Fp1", "Fp2", "Fpz", "F3", "F4", "F7", "F8", "Fz", "C3", "C4", "Cz", "T3", "T4", "T5", "T6", "T7", "T8"),
    *("P3", "P4", "P7", "P8", "Pz", "O1", "O2", "Oz"),
)
# Electrodes as the rules of cohorts name them, and the words for them. A blank is a place where _BETWEEN may stand.
_SPELLINGS: dict[Kind, dict[str, str]] = {
    "EEG": {name: name.casefold() for name in _TEN_TWENTY} | {"M1": "m1 | a1", "M2": "m2 | a2"},
    "EOG": {
        "E1": "e 1 | loc | eog 1 | e 1 leog | e 1 loc",
        "E2": "e 2 | roc | eog 2 | e 2 reog | e 2 roc",
        # A side alone; against a named reference this is E1 or E2.
        "EOG L": "eog l | l eog | eog left | left eog | left eye | eog left horiz | eog left horizontal",
        "EOG R": "eog r | r eog | eog right | right eog | right eye | eog right horiz | eog right horizontal",
    },
    "EMG": {
        "Chin": "chin | emg chin | chin emg | emg submental | submental emg | submental | emg submentalis | emg mentalis",
        "Chin1": "chin 1",
        "Chin2": "chin 2",
        "Chin3": "chin 3",
        "ChinL": "chin l | l chin | left chin | chin left",
        "ChinR": "chin r | r chin | right chin | chin right",
        "ChinC": "c chin | chin c | chin ctr | chin z | chin center | chin centre",
        "EMG": "emg",
        "EMG1": "emg 1",
        "EMG2": "emg 2",
        "EMG3": "emg 3",
    },
    "ECG": {
        "ECG": "ecg | ekg",
        "ECG1": "ecg 1 | ekg 1",
        "ECG2": "ecg 2 | ekg 2",
        "ECG3": "ecg 3 | ekg 3",
        "ECG I": "ecg i | ekg i | ecg lead i | ekg lead i",
        "ECG II": "ecg ii | ekg ii | ecg lead ii | ekg lead ii",
        "ECG L": "ecg l | ekg l | ecg left | ekg left",
        "ECG R": "ecg r | ekg r | ecg right | ekg right",
        "LA": "la",
        "RA": "ra",
    },
}
# References that are no electrode; "" is one that is common to all signals and not named.
_REFERENCES = {
    "": "ref | gnd",
    # Both of them, whatever joins them ("C3:M1-M2"): no recorder subtracts one after the other.
    "linked": "le | ler | cle | linked | linked ears | linked mastoids | a1 a2 | a2 a1 | m1 m2 | m2 m1 | a1 + a2 | m1 + m2 | "
    "a1 + a2 2 | m1 + m2 2",
    "average": "avg | average",
}
# Electrodes that are told by the kind before them alone ("ECG LA-RA").
_NEED_THEIR_KIND = ("LA", "RA")
_SIDES = {"EOG L": "E1", "EOG R": "E2"}
# "EMG Chin 1:2": the second electrode has the first one's word.
_NUMBERED_PAIR = re.compile(rf"(chin|emg|e[ck]g)({_BETWEEN})([1-3])([\s\-:/_.#]+)([1-3])(?=\W*$)")
# What MNE puts behind signals of one label: "EMG-0", "EMG-1".
_RUNNING_NUMBER = re.compile(r"(?P<label>.+)-(?P<number>\d{1,2})")
# A minus before the electrode ("-C3-M2", "EEG -C3") may say that the signal is upside down; whether it is is not known.
_TURNED_OVER = re.compile(rf"[\s(\[]*(?:(?:{'|'.join(_KINDS)})[\s:(\[]+)?-(?=\w)")
_LONGEST = 80


@dataclass(frozen=True)
class Label:
    """A label that was read.

    Attributes:
        kind: of signal.
        electrode: ``C3``, ``M1``, ``E1``, ``Chin2``, ``ECG`` and so on; ``EOG L`` where only the side is said.
        reference: another electrode, ``linked`` (mastoids or ears), ``average``, or empty where none is named.
    """

    kind: Kind
    electrode: str
    reference: str

    def __str__(self) -> str:
        return f"{self.electrode}-{self.reference}" if self.reference else self.electrode


def _pattern(spelling: str) -> str:
    """Expression for a spelling whose blanks may be anything that separates; a plus sign joins linked references."""
    return _BETWEEN.join(re.escape(word) for word in spelling.split())


def _any_of(spellings: Sequence[str]) -> str:
    return "|".join(map(_pattern, sorted(spellings, key=len, reverse=True)))


_ELECTRODES: list[tuple[str, Kind, str]] = [
    (spelling.strip(), kind, name)
    for kind, names in _SPELLINGS.items()
    for name, spellings in names.items()
    for spelling in spellings.split("|")
]
_OTHER_REFERENCES = [(spelling.strip(), name) for name, spellings in _REFERENCES.items() for spelling in spellings.split("|")]
_KIND_OF: dict[str, Kind] = {name: kind for kind, names in _SPELLINGS.items() for name in names}


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", text)


_ELECTRODE_OF = {_key(spelling): name for spelling, _, name in _ELECTRODES}
_REFERENCE_OF = _ELECTRODE_OF | {_key(spelling): name for spelling, name in _OTHER_REFERENCES}
_ANY_ELECTRODE = _any_of([spelling for spelling, *_ in _ELECTRODES])
_ANY_REFERENCE = f"{_any_of([spelling for spelling, _ in _OTHER_REFERENCES])}|{_ANY_ELECTRODE}"
_LABEL = re.compile(
    rf"{_BETWEEN}(?:(?P<kind>{'|'.join(_KINDS)}){_BETWEEN})?(?P<electrode>{_ANY_ELECTRODE})"
    rf"(?:{_BETWEEN}(?P<reference>{_ANY_REFERENCE}))?[\s()\[\]_.]*"
)


@lru_cache(maxsize=4096)
def read_label(label: str) -> Label | None:
    """What ``label`` says, or None where it is no electrode's that is known, or says more than this.

    Example:
        >>> read_label("EEG C3-A2") == read_label("C3:M2")
        True
        >>> read_label("Flow") is None
        True
    """
    text = unicodedata.normalize("NFKC", label[: _LONGEST + 1]).casefold().strip()
    if len(text) > _LONGEST:
        return None
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    if _TURNED_OVER.match(text):
        return None
    match = _LABEL.fullmatch(_NUMBERED_PAIR.sub(r"\1\3-\1\5", text))
    if match is None:
        return None
    electrode = _ELECTRODE_OF[_key(match["electrode"])]
    reference = _REFERENCE_OF[_key(match["reference"])] if match["reference"] else ""
    kind = _KIND_OF[electrode]
    if electrode in _NEED_THEIR_KIND if match["kind"] is None else kind not in _KINDS[match["kind"]]:
        return None
    if reference and electrode in _SIDES:
        electrode = _SIDES[electrode]
    return Label(kind, electrode, reference)


def without_running_numbers(labels: Sequence[str]) -> list[str]:
    """Labels as a file has them, without the numbers that MNE puts behind those that are there twice.

    ``EMG-1`` is the second ``EMG`` only where ``EMG-0`` is there; alone it is an electrode of that number.
    """
    numbered = {label.removesuffix("-0") for label in labels if label.endswith("-0")}
    return [
        match["label"] if (match := _RUNNING_NUMBER.fullmatch(label)) and match["label"] in numbered else label
        for label in labels
    ]
