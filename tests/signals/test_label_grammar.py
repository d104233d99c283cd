"""One reading of every spelling of a label, and what the rules of cohorts make of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sleepfm.config import load_config, to_dict
from sleepfm.constants import CHANNEL_UNIT
from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.cohort import ChannelRule, Cohort
from sleepfm.signals.cohorts.label_grammar import read_label, without_running_numbers
from sleepfm.signals.cohorts.montage import Montage, resolve
from sleepfm.signals.recording import Recording, SignalInfo

MANUAL = Path(__file__).parents[2] / "docs" / "channels.md"


def recording_of(*labels: str, unit: str = "uV", named: bool = False) -> Recording:
    """A recording of signals at 200 Hz in a unit that every channel but oximetry takes."""
    signals = tuple(SignalInfo(label, unit, 200.0, 6000, -500.0, 500.0, -32768, 32767) for label in labels)
    zeros = np.zeros(6000, np.float32)
    return Recording(Path("night.edf"), "EDF", "", None, 30.0, signals, (), (), (), lambda index: zeros, named)


def montage_of(*labels: str, cohort: str = "generic", **options: bool) -> Montage:
    return resolve(recording_of(*labels, **options), load_cohort(cohort))


def own_cohort(folder: Path, channels: str) -> Cohort:
    """A cohort file of somebody's own, that extends the generic one."""
    path = folder / "own.yaml"
    path.write_text(f"extends: generic.yaml\nname: own\nsource: test\nchannels:\n  {channels}\n", encoding="utf-8")
    return load_config(Cohort, path)


# Canonical channel and derivation, and the words for electrode and reference.
DERIVATIONS = {
    ("EEG_C3", "C3-M2"): ("EEG", ("C3",), ("M2", "A2")),
    ("EEG_C3", "C3-M1"): ("EEG", ("C3",), ("M1", "A1")),
    ("EEG_C4", "C4-M1"): ("EEG", ("C4",), ("M1", "A1")),
    ("EEG_C4", "C4-M2"): ("EEG", ("C4",), ("M2", "A2")),
    ("EEG_C4", "C4-linked mastoids"): ("EEG", ("C4",), ("LE", "LER", "CLE", "A1A2", "M1+M2", "M2:M1", "(A1+A2)/2")),
    ("EOG_L", "E1-M2"): ("EOG", ("E1", "LOC", "EOG1", "LEOG"), ("M2", "A2")),
    ("EOG_L", "E1-M1"): ("EOG", ("E1", "LOC", "EOGL"), ("M1", "A1")),
    ("EOG_R", "E2-M1"): ("EOG", ("E2", "ROC", "EOG2", "REOG"), ("M1", "A1")),
    ("EOG_R", "E2-M2"): ("EOG", ("E2", "ROC", "EOGR"), ("M2", "A2")),
    ("EMG_CHIN", "chin, two electrodes"): ("EMG", ("Chin1", "Chin 1", "chin_1"), ("Chin2", "Chin#2", "CHIN 2", "2")),
    ("ECG", "ECG"): ("ECG", ("EKG1", "ECG 1"), ("EKG2", "ECG-2")),
}


@st.composite
def spellings(draw):
    """A channel with its derivation, and a label that says it."""
    wanted = draw(st.sampled_from(list(DERIVATIONS)))
    kind, electrodes, references = DERIVATIONS[wanted]
    electrode, reference = draw(st.sampled_from(electrodes)), draw(st.sampled_from(references))
    between = draw(st.sampled_from(["-", ":", "/", "_", " ", " - ", ".", "–"]))
    label = draw(st.sampled_from(["{}", "{}", "({})", "[{}]", " {} "])).format(f"{electrode}{between}{reference}")
    prefix = draw(st.sampled_from(["", "", kind, "EEG", "EKG" if kind == "ECG" else kind]))
    label = f"{prefix}{draw(st.sampled_from([' ', '_', '-', ': ', '']))}{label}" if prefix else label
    label = draw(st.sampled_from([str, str.lower, str.upper, str.title]))(label)
    return wanted, label + draw(st.sampled_from(["", "", "-0"]))


@given(spellings())
def test_every_spelling_of_a_derivation_is_the_same_channel(spelling):
    (channel, derivation), label = spelling
    montage = montage_of(label)
    assert {name: found.derivation for name, found in montage.channels.items()} == {channel: derivation}, label


WORDS = (
    "eeg",
    "eog",
    "emg",
    "ecg",
    "ekg",
    "c3",
    "c4",
    "m1",
    "a2",
    "e1",
    "loc",
    "left",
    "chin",
    "ii",
    "ref",
    "le",
    *"lr012-:_/()+# ",
)


@given(st.lists(st.sampled_from(WORDS)))
def test_no_label_is_two_channels(words):
    assert len(montage_of("".join(words)).channels) <= 1


# What the rules for single signals listed, label by label, before there was a grammar.
LISTED = {
    ("EEG_C3", "C3-M2"): "C3-M2|C3-A2|EEG C3-M2|EEG C3-A2",
    ("EEG_C3", "C3-linked mastoids"): "C3:M1-M2|C3:M1:M2|C3-LE|EEG C3-LE|C3-A1A2|C3-M1M2|C3-(A1+A2)/2|C3-(M1+M2)/2",
    ("EEG_C4", "C4-M1"): "C4-M1|C4-A1|EEG C4-M1|EEG C4-A1",
    ("EEG_C4", "C4-linked mastoids"): "C4-LE|EEG C4-LE|C4-A1A2|C4-M1M2|C4-(A1+A2)/2|C4-(M1+M2)/2",
    ("EOG_L", "E1-M2"): "E1-M2|E1-A2|LOC-M2|LOC-A2|EOG E1-M2|EOG E1-A2|EOG LOC-M2|EOG LOC-A2|EOGL-M2|EOGL-A2",
    ("EOG_L", "E1-M1"): "E1-M1|E1-A1|LOC-A1|LOC-M1|EOG E1-M1|EOG E1-A1|EOG LOC-A1|EOG LOC-M1",
    ("EOG_L", "left EOG"): "EOG(L)|EOG-L|EOG L|EOG Left|Left EOG|L-EOG|LEOG",
    ("EOG_R", "E2-M1"): "E2-M1|E2-A1|ROC-M1|ROC-A1|EOG E2-M1|EOG E2-A1|EOG ROC-M1|EOG ROC-A1|EOGR-M1|EOGR-A1",
    ("EOG_R", "E2-M2"): "E2-M2|E2-A2|ROC-A2|ROC-M2|EOG E2-M2|EOG E2-A2|EOG ROC-M2|EOG ROC-A2",
    ("EOG_R", "right EOG"): "EOG(R)|EOG-R|EOG R|EOG Right|Right EOG|R-EOG|REOG",
    ("EMG_CHIN", "chin, two electrodes"): "Chin1-Chin2|Chin 1-Chin 2|EMG1-EMG2|EMG Chin1-Chin2|Lchin-Cchin|L Chin-C Chin|"
    "ChinL-ChinR",
    ("EMG_CHIN", "chin"): "EMG Chin|Chin EMG|Chin|EMG submental|Submental EMG",
    ("EMG_CHIN", "EMG"): "EMG",
    ("ECG", "ECG"): "ECG|EKG|ECG II|EKG II|ECG I|EKG I|ECG1-ECG2|EKG1-EKG2|ECG L-ECG R",
}


def test_a_label_beyond_the_longest_is_not_read_by_its_beginning():
    longest = "C4" + " " * 76 + "M1"
    assert str(read_label(longest)) == "C4-M1"
    assert read_label(longest + "6") is None


@pytest.mark.parametrize("wanted", LISTED, ids="-".join)
def test_labels_that_were_listed_are_what_they_were(wanted):
    channel, derivation = wanted
    for label in LISTED[wanted].split("|"):
        found = montage_of(label).channels
        assert {name: rule.derivation for name, rule in found.items()} == {channel: derivation}, label


@pytest.mark.parametrize("electrode", ["C3", "EEG C3", "C3-Ref", "EEG C3-Ref"])
@pytest.mark.parametrize("reference", ["M2", "A2", "EEG M2", "EEG A2", "M2-Ref", "A2-Ref", "EEG M2-Ref", "EEG A2-Ref"])
def test_electrodes_that_were_listed_are_subtracted_as_they_were(electrode, reference):
    found = montage_of(electrode, reference).channels
    assert set(found) == {"EEG_C3"} and found["EEG_C3"].derivation == "C3-M2"
    assert [source.label for source in found["EEG_C3"].references] == [reference]


def test_electrodes_against_a_common_reference_are_subtracted_with_it_alone():
    montage = montage_of("C3-Cz", "C4-Cz", "E1-Cz", "E2-Cz", "M1-Cz", "M2-Cz")
    assert {name: found.derivation for name, found in montage.channels.items()} == {
        "EEG_C3": "C3-M2", "EEG_C4": "C4-M1", "EOG_L": "E1-M2", "EOG_R": "E2-M1",
    }  # fmt: skip
    # Of electrodes against different references the difference is another one.
    assert not montage_of("C3-Cz", "M2", "M1").channels and not montage_of("C3", "M2-Cz", "M1-Cz").channels


@pytest.mark.parametrize(
    ("labels", "channel", "taken"),
    [
        (("L Chin-R Chin", "EMG", "Chin1-Chin2"), "EMG_CHIN", "Chin1-Chin2"),
        (("EMG", "Chin3-Chin2", "Chin1-Chin3"), "EMG_CHIN", "Chin1-Chin3"),
        (("ECG I", "ECG II", "ECG"), "ECG", "ECG II"),
        (("EOG(L)", "LOC-A1", "E1-M2"), "EOG_L", "E1-M2"),
        (("C3-LER", "C3-A1", "C3"), "EEG_C3", "C3-A1"),
    ],
)
def test_of_several_derivations_the_preferred_one_is_taken(labels, channel, taken):
    montage = montage_of(*labels)
    assert montage.channels[channel].active.label == taken and not montage.ambiguous


def rows_of_the_manual() -> list[tuple[str, str, str]]:
    """(label, channel, derivation) of every label in the table of spellings, both empty where it is not taken."""
    text = MANUAL.read_text(encoding="utf-8")
    table = text[text.index("| spellings |") :].split("\n\n")[0].splitlines()[2:]
    rows = []
    for line in table:
        spelled, _, becomes = (cell.strip() for cell in line.strip("|").split(" | "))
        match = re.fullmatch(r"`(\w+)`: (.+)", becomes)
        channel, derivation = (match[1], match[2].split(" (")[0]) if match else ("", "")
        rows += [(label, channel, derivation) for label in re.findall(r"`([^`]+)`", spelled)]
    return rows


def test_the_manual_says_what_becomes_of_public_spellings():
    rows = rows_of_the_manual()
    assert len(rows) > 100 and len({label for label, *_ in rows}) == len(rows)
    for label, channel, derivation in rows:
        montage = montage_of(*label.split(" and "))
        assert not montage.ambiguous, label
        assert {name: found.derivation for name, found in montage.channels.items()} == (
            {channel: derivation} if channel else {}
        ), label


def test_a_label_that_a_cohort_lists_is_that_channels(tmp_path):
    """Labels in a cohort file win over what they seem to say."""
    cohort = own_cohort(tmp_path, "EOG_L: [{signal: [EEG C3-M2], derivation: E1-M2}]")
    montage = resolve(recording_of("EEG C3-M2", "C4-M1"), cohort)
    assert {name: found.active.label for name, found in montage.channels.items()} == {"EOG_L": "EEG C3-M2", "EEG_C4": "C4-M1"}


def test_a_reference_that_a_cohort_lists_serves_all_channels(tmp_path):
    cohort = own_cohort(tmp_path, "EOG_L: [{signal: [X1], reference: [[M2]], derivation: E1-M2}]")
    assert set(resolve(recording_of("C3", "M2", "X1"), cohort).channels) == {"EEG_C3", "EOG_L"}


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("{derivation: C3-M2}", "not both"),
        ("{signal: [C3], electrodes: [C3]}", "not both"),
        ("{electrodes: [EEG sec]}", "'EEG sec' names no electrode or derivation"),
        ("{electrodes: [C3], reference: [[mastoid]]}", "'mastoid' names no electrode or derivation"),
    ],
)
def test_wrong_rules_are_refused(tmp_path, rule, reason):
    with pytest.raises(ConfigError, match=reason):
        own_cohort(tmp_path, f"EEG_C3: [{rule}]")


def test_a_rule_without_electrodes_is_stored_as_before():
    """The digest of data sets covers the rules: a key that came later is there only where it is used."""
    assert set(to_dict(ChannelRule(signal=("C3-M2",)))) == {
        "signal", "occurrence", "reference", "derivation", "substitute", "unit", "invert",
    }  # fmt: skip
    assert to_dict(ChannelRule(electrodes=("C3-M2",)))["electrodes"] == ["C3-M2"]


def follow_advice(tmp_path: Path, message: str, place: int, key: str = "occurrence") -> Cohort:
    """A cohort file with the line that ``message`` gives, for the signal at ``place``."""
    line = message[message.index("position: ") + 10 :]
    assert f"{key}: 1" in line and yaml.safe_load(line)
    return own_cohort(tmp_path, line.replace(f"{key}: 1", f"{key}: {place}"))


@pytest.mark.parametrize("labels", [("EMG", "EMG"), ("EMG", "emg"), ("EMG-0", "EMG-1"), ("EEG Chin", "Chin"), ("Chin.", "CHIN")])
def test_the_advice_for_signals_of_one_label_works(tmp_path, labels):
    others = ("C3-M2", "C4-M1", "E1-M2", "E2-M1", "ECG")
    recording = recording_of(*others, *labels)
    montage = resolve(recording, load_cohort("generic"))
    if labels == ("EEG Chin", "Chin"):  # two labels
        assert "EMG_CHIN" in montage.ambiguous
        return
    assert set(montage.channels) == {"EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "ECG"} and not montage.ambiguous
    for place in (1, 2):
        again = resolve(recording, follow_advice(tmp_path, montage.missing["EMG_CHIN"], place))
        assert again.channels["EMG_CHIN"].active.index == len(others) + place - 1 and len(again.channels) == 6


@pytest.mark.parametrize("labels", [("EMG", "EMG"), ("EMG-0", "EMG-1")])
def test_the_advice_works_for_labels_that_a_cohort_lists(tmp_path, labels):
    recording = recording_of("EEG", *labels)
    missing = resolve(recording, load_cohort("shhs1")).missing["EMG_CHIN"]
    for place in (1, 2):
        assert resolve(recording, follow_advice(tmp_path, missing, place)).channels["EMG_CHIN"].active.index == place


@pytest.mark.parametrize("labels", [("M2", "M2"), ("A2-0", "A2-1")])
def test_the_advice_for_references_of_one_label_works(tmp_path, labels):
    recording = recording_of("C3", *labels)
    missing = resolve(recording, load_cohort("generic")).missing["EEG_C3"]
    for place in (1, 2):
        found = resolve(recording, follow_advice(tmp_path, missing, place, "reference_occurrence")).channels["EEG_C3"]
        assert [source.index for source in found.references] == [place]


def test_running_numbers_are_those_of_labels_that_stand_twice():
    assert without_running_numbers(["EMG-0", "EMG-1", "EMG-2", "C4-M1-0", "Chin-1", "ECG-1"]) == [
        "EMG", "EMG", "EMG", "C4-M1", "Chin-1", "ECG-1",
    ]  # fmt: skip
    assert str(read_label("Chin-1")) == "Chin1"


def test_names_of_ours_in_a_raw_are_taken_for_what_they_say():
    named = ("EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "EMG_CHIN", "ECG", "AIRFLOW")
    montage = montage_of(*named, named=True)
    assert {name: found.active.label for name, found in montage.channels.items()} == dict(zip(named, named, strict=True))
    assert montage.channels["EEG_C4"].derivation == "C4-M1" and montage.channels["EEG_C4"].choice == 0
    # A file's header says EEG_C4 of the electrode, as do those of the Mignot nap studies.
    assert "EEG_C4" not in montage_of(*named).channels
    subtracted = montage_of("EEG_C4", "EEG_A1", named=True).channels["EEG_C4"]
    assert [source.label for source in subtracted.references] == ["EEG_A1"]


def test_oximetry_of_a_raw_has_the_one_unit_that_there_is():
    assert CHANNEL_UNIT["SPO2"] == "%" and "SPO2" in montage_of("SPO2", unit="", named=True).channels
    assert "SPO2" in montage_of("SPO2", unit="uV", named=True).missing
