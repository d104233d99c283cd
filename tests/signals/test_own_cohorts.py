"""Cohort files of somebody's own: what is wrong in them is said with its line, and a folder of them joins ``auto``."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import OWN_COHORTS, all_cohorts, cohort_names, load_cohort, load_rules
from sleepfm.signals.prepare import discover, prepare

HEAD = "extends: generic.yaml\nname: lab\nsource: test\n"


def wrong(folder: Path, text: str) -> str:
    path = folder / "lab.yaml"
    path.write_text(HEAD + text)
    with pytest.raises(ConfigError) as caught:
        load_cohort(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 500 and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "channels:\n  EEG_C33:\n    - {signal: [X]}\n",
            "line 5: key 'channels.EEG_C33': 'EEG_C33' is not a channel; the channels are EEG_C3, EEG_C4, EOG_L, EOG_R, "
            "EMG_CHIN, ECG, AIRFLOW, THORAX, ABDOMEN or SPO2",
        ),
        (
            "channels:\n  ECG:\n    - {signal: [X]}\n    - {signl: [Y]}\n",
            "line 7: unknown key 'channels.ECG.1.signl'; did you mean 'channels.ECG.1.signal'?",
        ),
        (
            "channels:\n  ECG:\n    - {signal: [X], zzzz: 1}\n",
            "line 6: unknown key 'channels.ECG.0.zzzz'; known keys: derivation, electrodes, invert, occurrence, reference, "
            "reference_occurrence, signal, substitute, unit",
        ),
        (
            "channels:\n  ECG:\n    - {signal: [X], electrodes: [ECG]}\n",
            "line 6: key 'channels.ECG.0': give either `signal` (the labels) or `electrodes`",
        ),
        ("scoring:\n  files: ['{stem}.csv', '{name}.csv']\n", "uses {name}; a pattern can use {stem}, {folder} or {key}"),
        ("scoring:\n  files: ['{stem.csv']\n", "line 5: key 'scoring.files': '{stem.csv' is not a valid pattern (expected '}'"),
        (
            "scoring:\n  files: ['/data/{stem}.csv']\n",
            "'/data/{stem}.csv' is not a pattern relative to the folder of the recording",
        ),
        ("scoring:\n  longer: maybe\n", "line 5: key 'scoring.longer': must be 'cut' or 'error' (found 'maybe')"),
        ("minimum_rate: {EMG_CHIN: fast}\n", "line 4: key 'minimum_rate.EMG_CHIN': expected a number (found 'fast')"),
        (
            "scoring: {events: {Unsure: apnoea}}\n",
            "line 4: key 'scoring.events': 'Unsure' is mapped to 'apnoea', which is not one of",
        ),
    ],
)
def test_an_error_names_line_and_key_and_what_is_allowed(tmp_path, text, expected):
    assert expected in wrong(tmp_path, text)


def test_an_error_in_what_is_extended_names_that_file(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: generic.yaml\n\npolarity: {ECG: sideways}\n")
    path = tmp_path / "lab.yaml"
    path.write_text("extends: base.yaml\nname: lab\nsource: test\n")
    with pytest.raises(ConfigError, match=r"lab\.yaml: base\.yaml, line 3: key 'polarity\.ECG': must be 'inverted'"):
        load_cohort(str(path))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "cohorts"
    folder.mkdir()
    (folder / "lab.yaml").write_text(
        HEAD + "recognise: {labels: [Brain]}\nchannels:\n  EEG_C3: [{signal: [Brain], derivation: C3-M2}]\n"
    )
    (tmp_path / "nights").mkdir()
    write_edf(tmp_path / "nights" / "a.edf", [Made("Brain", noise(200 * 90), 200)])
    return folder


def test_the_shipped_ones_keep_the_order_that_digests_have(monkeypatch):
    monkeypatch.delenv(OWN_COHORTS, raising=False)
    names = [cohort.name for cohort in all_cohorts().all()]
    assert names == sorted(names) == list(cohort_names()) and {"sleep-edf", "sleep-edf-telemetry"} < set(names)
    assert load_rules("auto") is None


def test_a_folder_of_cohorts_joins_auto(lab, tmp_path, monkeypatch, capsys):
    night, nights = tmp_path / "nights" / "a.edf", str(tmp_path / "nights")
    assert main(["doctor", nights]) == 1
    assert main(["doctor", nights, "--cohort", str(lab)]) == 0
    assert "cohort lab" in capsys.readouterr().out
    rules = load_rules(str(lab))
    assert list(discover(nights, rules)) == [night] and prepare(night, rules).cohort == "lab"
    monkeypatch.setenv(OWN_COHORTS, str(lab))
    assert main(["doctor", nights]) == 0 and main(["doctor", nights, "--cohort", "lab"]) == 0
    assert prepare(night).cohort == "lab"
    # The others are still known.
    assert load_rules("shhs1").name == "shhs1"


def test_ones_own_cohort_takes_the_place_of_a_shipped_one(lab, tmp_path, monkeypatch):
    (lab / "shhs1.yaml").write_text(HEAD.replace("name: lab", "name: shhs1") + "recognise: {name: '^a\\.'}\n")
    (lab / "lab.yaml").unlink()
    monkeypatch.setenv(OWN_COHORTS, str(lab))
    assert load_cohort("shhs1").source == "test"
    rules = load_rules("auto")
    assert [cohort.name for cohort in rules.all()].count("shhs1") == 1
    assert rules.recognise("a.edf", ["Brain"]).source == "test"


def test_a_folder_without_cohorts_and_two_of_one_name_are_refused(lab, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no cohort file"):
        load_rules(str(tmp_path / "empty"))
    (lab / "other.yaml").write_text((lab / "lab.yaml").read_text())
    with pytest.raises(ConfigError, match="two files have the cohort name 'lab'"):
        load_rules(str(lab))
