"""Canonical channels by rule: aliases, references, units, rates, substitutes, ambiguity."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_edf import Made, noise, write_edf

from sleepfm.config import load_config
from sleepfm.constants import CHANNELS
from sleepfm.errors import ConfigError, MontageError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.catalogue import cohort_names, load_cohort, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort, normalise_label
from sleepfm.signals.cohorts.identity import identify
from sleepfm.signals.cohorts.montage import derive, resolve
from sleepfm.signals.examine import examine, require_channels
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.finder import find_scoring
from sleepfm.signals.scorings.reader import read_scoring


def make(tmp_path, *signals, name="night.edf"):
    """A 2-s recording of ``(label, unit, rate)``."""
    made = [Made(label, noise(2 * rate, seed), rate, unit) for seed, (label, unit, rate) in enumerate(signals)]
    return read_recording(write_edf(tmp_path / name, made))


def rules(tmp_path, **channels) -> Cohort:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"name": "rules", "source": "test", "channels": channels}), encoding="utf-8")
    values = yaml.safe_load((config_root() / "cohorts" / "defaults.yaml").read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**values, **yaml.safe_load(path.read_text(encoding="utf-8"))}), encoding="utf-8")
    return load_config(Cohort, path)


def test_every_shipped_cohort_is_sound():
    assert {"generic", "nox", "shhs1", "shhs2", "sleep-edf"} <= set(cohort_names())
    for name in cohort_names():
        cohort = load_cohort(name)
        assert cohort.name == name and cohort.source
        assert set(cohort.filters) == set(cohort.quality) == set(cohort.minimum_rate) == set(CHANNELS)
        for channel, candidates in cohort.channels.items():
            assert channel in CHANNELS and all(rule.derivation for rule in candidates)


def test_unknown_cohorts_and_channels_are_named(tmp_path):
    with pytest.raises(ConfigError, match="shhs1"):
        load_cohort("shsh1")
    with pytest.raises(ConfigError, match="EEG_CZ"):
        rules(tmp_path, EEG_CZ=[{"signal": ["Cz"]}])
    with pytest.raises(ConfigError, match="signals"):
        rules(tmp_path, EEG_C3=[{"signals": ["C3"]}])


def test_nox_montage_among_ninety_signals(shared_data):
    recording = read_recording(shared_data / "nox-a1" / "subject1.edf")
    cohort = recognise_cohort(recording.name, [signal.label for signal in recording.signals])
    montage = resolve(recording, cohort)
    assert cohort.name == "nox" and not montage.ambiguous and set(montage.channels) == set(CHANNELS)
    chosen = {name: derivation.active.label for name, derivation in montage.channels.items()}
    assert chosen["EEG_C3"] == "C3-M2" and chosen["EMG_CHIN"] == "1-F" and chosen["SPO2"] == "Saturation"
    signal, rate = derive(recording, montage.channels["EEG_C4"])
    assert rate == 200 and signal.shape == (24_000,) and 5 < np.subtract(*np.percentile(signal, (75, 25))) < 100
    ecg, _ = derive(recording, montage.channels["ECG"])
    assert 0.05 < np.ptp(ecg) < 5  # mV


def test_sleep_edf_has_no_emg_and_only_declared_substitutes(shared_data):
    recording = read_recording(shared_data / "sleep-edf" / "short_psg.edf")
    cohort = recognise_cohort(recording.name, [signal.label for signal in recording.signals])
    montage = resolve(recording, cohort)
    assert cohort.name == "sleep-edf" and "1 Hz is below" in montage.missing["EMG_CHIN"]
    assert set(montage.channels) == {"EEG_C4", "EOG_L"}
    assert all(derivation.describe()["substitute"] for derivation in montage.channels.values())
    assert not resolve(recording, load_cohort("generic")).channels.keys() & {"EEG_C3", "EEG_C4", "EMG_CHIN"}


def test_shhs_labels(tmp_path, shared_data):
    signals = [("EEG(SEC)", "uV", 125), ("EEG", "uV", 125), ("EOG(L)", "uV", 50), ("EOG(R)", "uV", 50), ("EMG", "uV", 125)]
    signals += [("SaO2", "", 1), ("ECG", "mV", 125), ("NEW AIR", "", 10), ("THOR RES", "", 10), ("ABDO RES", "", 10)]
    recording = make(tmp_path, *signals, name="shhs2-200077.edf")
    cohort = recognise_cohort(recording.name, [signal.label for signal in recording.signals])
    montage = resolve(recording, cohort)
    assert cohort.name == "shhs2" and set(montage.channels) == set(CHANNELS)
    assert montage.channels["EEG_C3"].active.label == "EEG(SEC)" and montage.channels["EEG_C3"].derivation == "C3-A2"
    assert montage.channels["EEG_C4"].active.label == "EEG" and montage.channels["EEG_C4"].derivation == "C4-A1"
    assert montage.channels["SPO2"].active.unit == "%"
    visits = [identify(tmp_path / f"shhs{visit}-200077.edf", load_cohort(f"shhs{visit}")) for visit in (1, 2)]
    assert visits[0].subject == visits[1].subject and visits[0].record != visits[1].record
    assert [identity.visit for identity in visits] == ["1", "2"]


def test_nights_of_one_person_in_sleep_edf(tmp_path):
    cohort = load_cohort("sleep-edf")
    nights = [identify(tmp_path / name, cohort) for name in ("SC4001E0-PSG.edf", "SC4002E0-PSG.edf", "SC4011E0-PSG.edf")]
    assert nights[0].subject == nights[1].subject != nights[2].subject
    assert [night.visit for night in nights] == ["1", "2", "1"]


def test_referencing(tmp_path):
    recording = make(tmp_path, ("C3", "uV", 100), ("A2", "mV", 100), ("A1", "uV", 100), ("E2", "uV", 100))
    montage = resolve(recording, load_cohort("generic"))
    c3, rate = derive(recording, montage.channels["EEG_C3"])
    assert rate == 100
    np.testing.assert_allclose(c3, recording.read(0) - 1000 * recording.read(1), rtol=1e-4, atol=1e-2)
    assert montage.channels["EOG_R"].describe()["reference"] == ["A1"]
    linked = rules(tmp_path, EEG_C3=[{"signal": ["C3"], "reference": [["A1"], ["A2"]], "invert": True}])
    derived, _ = derive(recording, resolve(recording, linked).channels["EEG_C3"])
    mean = (recording.read(2) + 1000 * recording.read(1)) / 2
    np.testing.assert_allclose(derived, mean - recording.read(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("count", "listed"), [(8, "'S7'"), (9, "'S7', ...")])
def test_a_recording_without_any_channel_names_the_first_eight_signals(tmp_path, count, listed):
    made = [Made(f"S{number}", noise(30), 1) for number in range(count)]
    examination = examine(write_edf(tmp_path / "night.edf", made))
    with pytest.raises(MontageError, match=re.escape(f"among {count} signals ('S0', 'S1',") + ".*" + re.escape(f"{listed})")):
        require_channels(examination)


@pytest.mark.parametrize("physical", [("-100", "300"), ("300", "-100")])
def test_limits_are_the_recorders_in_the_unit_and_polarity_of_the_channel(tmp_path, physical):
    signals = [Made(label, noise(200, 0), 100, "mV", physical=physical) for label in ("C3", "C4", "A1")]
    recording = read_recording(write_edf(tmp_path / "night.edf", signals))
    cohort = rules(
        tmp_path,
        EEG_C3=[{"signal": ["C3"]}],
        EEG_C4=[{"signal": ["C4"], "invert": True}],
        EOG_L=[{"signal": ["C3"], "reference": [["A1"]]}],
    )
    channels = resolve(recording, cohort).channels
    assert channels["EEG_C3"].limits == pytest.approx((-100_000, 300_000))
    assert channels["EEG_C4"].limits == pytest.approx((-300_000, 100_000))
    assert channels["EOG_L"].limits is None
    one = 400_000 / 65_535
    assert [channels[name].step for name in ("EEG_C3", "EEG_C4", "EOG_L")] == pytest.approx([one, one, 2 * one])


def test_an_electrode_without_its_reference_is_missing_and_says_so(tmp_path):
    montage = resolve(make(tmp_path, ("C4", "uV", 100), ("M1", "uV", 50)), load_cohort("generic"))
    assert "EEG_C4" not in montage.channels and "M1" in montage.missing["EEG_C4"]


def test_ambiguity_names_the_candidates(tmp_path):
    recording = make(tmp_path, ("C3-M2", "uV", 100), ("C3-A2", "uV", 100), ("Chin", "uV", 200), ("chin", "uV", 200))
    montage = resolve(recording, load_cohort("generic"))
    assert not montage.channels
    assert "'C3-M2' (signal 1)" in montage.ambiguous["EEG_C3"] and "'C3-A2'" in montage.ambiguous["EEG_C3"]


def test_signals_of_one_label_cost_their_channel_alone(tmp_path):
    """Exports that call chin and leg alike (mne-python issues 4305 and 10053)."""
    names = ("C3-M2", "C4-M1", "E1-M2", "E2-M1", "ECG", "EMG", "emg")
    recording = make(tmp_path, *((name, "mV" if name == "ECG" else "uV", 200) for name in names))
    montage = resolve(recording, load_cohort("generic"))
    assert set(montage.channels) == {"EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "ECG"} and not montage.ambiguous
    assert "'EMG' (signal 6), 'emg' (signal 7)" in montage.missing["EMG_CHIN"]
    # What the message advises, in a cohort file of the user's own folder.
    own = tmp_path / "own.yaml"
    own.write_text(
        "extends: generic.yaml\nname: own\nsource: test\n"
        "channels:\n  EMG_CHIN:\n    - {signal: [EMG], occurrence: 2, derivation: chin}\n"
    )
    montage = resolve(recording, load_cohort(str(own)))
    assert montage.channels["EMG_CHIN"].active.index == 6 and len(montage.channels) == 6


def test_signals_of_one_label_that_no_channel_needs_are_no_matter(tmp_path):
    recording = make(
        tmp_path, ("C3-M2", "uV", 100), ("Leg", "uV", 200), ("Leg", "uV", 200), ("Pressure", "", 25), ("Pressure", "", 25)
    )
    assert set(resolve(recording, load_cohort("generic")).channels) == {"EEG_C3"}


@pytest.mark.parametrize("reference", ["A1", "A2", "M1", "M2"])
@pytest.mark.parametrize(("electrode", "channel"), [("E1", "EOG_L"), ("LOC", "EOG_L"), ("E2", "EOG_R"), ("ROC", "EOG_R")])
def test_an_eog_is_known_with_and_without_its_kind_before_it(tmp_path, electrode, channel, reference):
    """The EDF+ specification's standard texts put the kind of signal before the derivation."""
    derivations = []
    for prefix in ("", "EOG "):
        montage = resolve(make(tmp_path, (f"{prefix}{electrode}-{reference}", "uV", 100)), load_cohort("generic"))
        assert set(montage.channels) == {channel}
        derivations.append(montage.channels[channel].derivation)
    assert derivations[0] == derivations[1]


def test_an_unfit_duplicate_does_not_make_it_ambiguous(tmp_path):
    montage = resolve(make(tmp_path, ("EMG Chin", "uV", 1), ("EMG chin", "uV", 200)), load_cohort("generic"))
    assert montage.channels["EMG_CHIN"].active.index == 1


@pytest.mark.parametrize("unit", ["", "Ohm", "MV"])
def test_units_are_never_assumed(tmp_path, unit):
    montage = resolve(make(tmp_path, ("C3-M2", unit, 100), ("Airflow", unit, 25)), load_cohort("generic"))
    assert "EEG_C3" in montage.missing and "unit" in montage.missing["EEG_C3"]
    assert "AIRFLOW" in montage.channels


def test_preference_and_choice(tmp_path):
    both = resolve(make(tmp_path, ("Nasal Pressure", "", 25), ("Thermistor", "", 25)), load_cohort("generic"))
    one = resolve(make(tmp_path, ("Nasal Pressure", "", 25)), load_cohort("generic"))
    assert (both.channels["AIRFLOW"].choice, one.channels["AIRFLOW"].choice) == (1, 2)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("EEG(sec)", "eeg SEC", True),
        ("C3:M2", "c3-m2", True),
        ("EOG (L)", "EOG-L", True),
        ("ECG+", "ECG-", False),
        ("EEG", "EEG2", False),
        ("C3 (Imp)", "C3", False),
        ("1 Impédance", "1 IMPÉDANCE", True),
    ],
)
def test_labels_compare_without_case_space_and_punctuation(one, other, same):
    assert (normalise_label(one) == normalise_label(other)) is same


# File names as the cohorts' public documentation gives them: two nights of one person, and somebody else's.
PEOPLE = {
    "shhs1": ("shhs1-205238.edf", None, "shhs1-205239.edf"),
    "mesa": ("mesa-sleep-5805.edf", None, "mesa-sleep-5806.edf"),
    "mros1": ("mros-visit1-aa5665.edf", "mros-visit2-aa5665.edf", "mros-visit1-aa5666.edf"),
    "cfs": ("cfs-visit5-802593.edf", None, "cfs-visit5-802626.edf"),
    "ccshs": ("ccshs-trec-1800005.edf", None, "ccshs-trec-1800006.edf"),
    "chat": ("chat-baseline-300001.edf", "chat-followup-300001.edf", "chat-nonrandomized-300004.edf"),
    "wsc": ("wsc-visit1-10119-nsrr.edf", "wsc-visit2-10119-nsrr.edf", "wsc-visit1-10120-nsrr.edf"),
    "sof": ("sof-visit-8-07853.edf", None, "sof-visit-8-07854.edf"),
    "homepap": ("homepap-lab-full-1600039.edf", "homepap-lab-split-1600039.edf", "homepap-home-1600150.edf"),
    "abc": ("abc-baseline-900001.edf", "abc-month18-900001.edf", "abc-month09-900002.edf"),
    "apples": ("apples-140094.edf", None, "apples-560232.edf"),
    "nchsdb": ("5053_2167.edf", "5053_9865.edf", "4480_5926.edf"),
    "stages": ("GSSA00001.edf", "GSSA00001_1.edf", "STNF00001.edf"),
    "sleep-edf-telemetry": ("ST7071J0-PSG.edf", "ST7072J0-PSG.edf", "ST7081J0-PSG.edf"),
}


@pytest.mark.parametrize("name", PEOPLE)
def test_all_visits_of_a_person_are_one_subject(name):
    cohort = load_cohort(name)
    first, again, other = (identify(Path(file), cohort) if file else None for file in PEOPLE[name])
    assert first.subject.startswith(cohort.identity.prefix) and first.subject != other.subject and first.record != other.record
    if again:
        assert again.subject == first.subject and again.visit != first.visit and again.record != first.record
    if cohort.recognise.name:
        matching = [other for other in cohort_names() if re.search(load_cohort(other).recognise.name or "(?!)", PEOPLE[name][0])]
        assert matching == [name]


def test_substitutes_are_taken_in_order_and_recorded(tmp_path):
    signals = [("C3", "uV", 256), ("A1", "uV", 256), ("LOC", "uV", 256), ("R Chin", "uV", 256), ("L Chin", "uV", 256)]
    signals += [("Cannula Flow", "", 64), ("SaO2", "", 1)]
    montage = resolve(make(tmp_path, *signals, name="sof-visit-8-00001.edf"), load_cohort("sof"))
    c3, flow = montage.channels["EEG_C3"], montage.channels["AIRFLOW"]
    assert c3.references[0].label == "A1" and "ipsilateral" in c3.substitute and c3.choice == 3
    assert flow.active.label == "Cannula Flow" and "nasal pressure" in flow.substitute
    chin = montage.channels["EMG_CHIN"]
    assert (chin.active.label, chin.references[0].label) == ("L Chin", "R Chin")
    assert "A1" not in montage.missing.get("EOG_L", "") and montage.channels["SPO2"].active.unit == "%"


def test_a_broken_signal_of_chat_is_not_taken(tmp_path):
    recording = make(tmp_path, ("Lchin", "uV", 200), ("Cchin", "uV", 200), ("Rchin", "uV", 200), name="chat-baseline-300001.edf")
    broken = dataclasses.replace(recording.signals[0], physical_min=0.0, physical_max=0.0)
    recording = dataclasses.replace(recording, signals=(broken, *recording.signals[1:]))
    chin = resolve(recording, load_cohort("chat")).channels["EMG_CHIN"]
    assert (chin.active.label, chin.references[0].label) == ("Rchin", "Cchin")


@pytest.mark.parametrize(
    ("cohort", "name", "labels", "active", "reference", "derivation"),
    [
        ("chat", "chat-baseline-300001.edf", ("ECG1", "ECG2", "ECG3"), "ECG1", "ECG3", "ECG1-ECG3"),
        ("homepap", "homepap-lab-full-1600039.edf", ("ECG1", "ECG2", "ECG3"), "ECG3", "ECG1", "ECG3-ECG1"),
        ("homepap", "homepap-lab-full-1600039.edf", ("ECG",), "ECG", None, "ECG3-ECG1"),
        ("chat", "chat-baseline-300001.edf", ("ECG1", "ECG2"), "ECG1", "ECG2", "ECG1-ECG2"),
    ],
)
def test_the_ecg_is_the_documented_derivation(tmp_path, cohort, name, labels, active, reference, derivation):
    recording = make(tmp_path, *((label, "mV", 200) for label in labels), name=name)
    ecg = resolve(recording, load_cohort(cohort)).channels["ECG"]
    assert (ecg.active.label, ecg.references[0].label if ecg.references else None) == (active, reference)
    assert ecg.describe()["derivation"] == derivation
    # What was documented is no substitute; what stands in for it is one.
    assert bool(ecg.substitute) == (derivation == "ECG1-ECG2")


def test_the_eyes_of_wsc_are_against_the_opposite_mastoid(tmp_path):
    montage = resolve(make(tmp_path, ("E1", "uV", 200), ("E2", "uV", 200), name="wsc-visit1-10119-nsrr.edf"), load_cohort("wsc"))
    told = {channel: montage.channels[channel].describe() for channel in ("EOG_L", "EOG_R")}
    assert {channel: (entry["derivation"], entry["substitute"]) for channel, entry in told.items()} == {
        "EOG_L": ("E1-M2", ""),
        "EOG_R": ("E2-M1", ""),
    }


def test_stages_of_wsc_as_nsrr_made_them_are_found(tmp_path):
    edf = make(tmp_path, ("E1", "uV", 200), name="wsc-visit1-10119-nsrr.edf").path
    (tmp_path / "wsc-visit1-10119-nsrr.eannot").write_text("wake\nNREM1\nNREM2\nNREM3\nREM\n?\n")
    found = find_scoring(edf, None, load_cohort("wsc"))
    assert found is not None and found.suffix == ".eannot"
    assert [interval.stage for interval in read_scoring(found).stages][:5] == [0, 1, 2, 3, 4]
    (tmp_path / "wsc-visit1-10119-nsrr.stg.txt").write_text("Epoch\tUser-Defined Stage\n1\t0\n")
    assert find_scoring(edf, None, load_cohort("wsc")).name.endswith(".stg.txt")
