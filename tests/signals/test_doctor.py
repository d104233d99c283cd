"""What the doctor proposes maps what it says, on a whole folder or a sample, by one process or several."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import RecordingError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.doctor import examine_recordings, sample_of
from sleepfm.signals.examine import Discovered, discover, examine
from sleepfm.signals.files import matching_files
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.finder import find_scoring

SIGNALS = [
    Made("C4-M1", noise(200 * 300), 200),
    Made("Brain L", noise(200 * 300, 1), 200),
    Made("My chin 7", noise(200 * 300, 2), 200),
    Made("ECG V5", noise(200 * 300, 3), 200, unit=""),
    Made("Nasal flow X", noise(32 * 300, 4), 32),
    Made("Leg EMG 7", noise(200 * 300, 5), 200),
]


def night(folder: Path, name: str = "a.edf") -> Path:
    return write_edf(folder / name, SIGNALS)


def test_every_signal_that_is_not_mapped_is_listed_and_its_rule_maps_it(tmp_path, capsys):
    (tmp_path / "nights").mkdir()
    path = night(tmp_path / "nights")
    assert main(["doctor", str(tmp_path / "nights"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [item["label"] for item in found["unmapped"]] == [made.label for made in SIGNALS[1:]]
    assert {(item["rate"], item["unit"]) for item in found["unmapped"]} == {(200.0, "uV"), (200.0, ""), (32.0, "uV")}
    rules = {item["label"]: item["rule"] for item in found["unmapped"]}
    assert rules["Brain L"] == rules["Leg EMG 7"] == ""
    channels = {"My chin 7": "EMG_CHIN", "ECG V5": "ECG", "Nasal flow X": "AIRFLOW"}
    assert {item["label"]: item["channel"] for item in found["unmapped"] if item["channel"]} == channels
    own = tmp_path / "own.yaml"
    own.write_text(
        "extends: generic.yaml\nname: own\nsource: test\nchannels:\n" + "".join(f"  {rule}\n" for rule in rules.values() if rule)
    )
    montage = examine(path, load_cohort(str(own))).montage
    assert {derivation.active.label: name for name, derivation in montage.channels.items()} == channels | {"C4-M1": "EEG_C4"}
    assert main(["doctor", str(tmp_path / "nights")]) == 0
    text = capsys.readouterr().out
    assert "'Brain L'                    200 Hz   uV            1 of 1" in text
    assert f"           {rules['My chin 7']}  # 1 recordings\n" in text
    assert yaml.safe_load(rules["ECG V5"])["ECG"] == [{"signal": ["ECG V5"], "derivation": "ECG V5", "unit": "mV"}]
    assert f"{rules['ECG V5']}  # 1 recordings; the header states no unit, check this one\n" in text


def test_two_signals_of_one_label_get_no_rule_that_cannot_tell_them_apart(tmp_path):
    path = write_edf(tmp_path / "a.edf", [SIGNALS[0], SIGNALS[2], SIGNALS[2]])
    (finding,) = examine_recordings({path: Discovered()}, tmp_path, None)
    assert [item["rule"] for item in finding.unmapped] == ["", ""]


def test_what_was_looked_for_and_where_texts_stand(tmp_path, capsys):
    night(tmp_path)
    night(tmp_path, "b.edf")
    rows = [f"{30 * n},30,Sleep stage N2" for n in range(10)] + ["95,3,Foobar", "40,3,Foobar", "200,3,Odd apnoea"]
    (tmp_path / "b.csv").write_text("onset,duration,event\n" + "\n".join(rows) + "\n")
    assert main(["doctor", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "scorings   generic: looked for a-nsrr.xml, annotations-events-nsrr/" in text and "a_events.csv, a.csv" in text
    assert f"texts      'Foobar' 2, first in {tmp_path}/b.edf at 0:00:40" in text
    assert f"texts      'Odd apnoea' 1, first in {tmp_path}/b.edf at 0:03:20" in text


def test_processes_find_what_one_finds(tmp_path):
    for name in "abcdefgh":
        night(tmp_path, f"{name}.edf")
    (tmp_path / "c.edf").write_bytes(b"not a recording" * 30)
    found = discover(tmp_path)
    alone = list(examine_recordings(found, tmp_path, None))
    assert list(examine_recordings(found, tmp_path, None, workers=2)) == alone
    assert [Path(finding.path).stem for finding in alone] == list("abcdefgh") and alone[2].refused


def test_a_sample_is_the_same_each_time_and_said_to_be_one(tmp_path, capsys):
    for name in "abcdef":
        night(tmp_path, f"{name}.edf")
    found = discover(tmp_path)
    assert sample_of(found, 3) == sample_of(found, 3) and len(sample_of(found, 3)) == 3
    assert sample_of(found, 99) == sample_of(found, None) == found
    assert main(["doctor", str(tmp_path), "--sample", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 recordings: 2 usable" in text and "a sample of 2 of the 6 recordings" in text
    with pytest.raises(SystemExit):
        main(["doctor", str(tmp_path), "--sample", "0"])


def test_a_damaged_scoring_is_told_and_its_recording_counts_as_usable(tmp_path, capsys):
    path = night(tmp_path)
    (tmp_path / "a.csv").write_text("onset,duration,stage\n90000,30,W\n")
    assert main(["doctor", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "NOT USED" in text and "belongs to another night" in text and "1 usable, 0 would be quarantined" in text
    assert prepare(path).provenance["scoring"] is None


def test_a_folder_of_thousands_is_not_listed_for_each_recording(tmp_path):
    """Names that differ in a letter are asked for one by one, and those with marks of patterns are taken as they stand."""
    for name in ("a[1].edf", "a[1]-hypnogram.edf", "a1-Hypnogram.edf", "b-Hypnogram.bdf", "b-hypnogramm.edf"):
        (tmp_path / name).write_text("x")
    generic = load_cohort("generic")

    def found(name: str) -> str | None:
        path = find_scoring(tmp_path / name, tmp_path, generic)
        return path and path.name

    assert found("a[1].edf") == "a[1]-hypnogram.edf" and found("b.edf") == "b-Hypnogram.bdf" and found("c.edf") is None
    for number in range(4000):
        (tmp_path / f"n{number}.edf").touch()
    begin = time.process_time()
    assert all(found(f"n{number}.edf") is None for number in range(200))
    assert time.process_time() - begin < 2  # six, where the folder is listed for each pattern
    assert matching_files(tmp_path, "[!a]-hypno*.edf") == [tmp_path / "b-hypnogramm.edf"]


def test_a_folder_that_cannot_be_listed_is_named_and_its_recordings_are_not_passed_over(tmp_path, monkeypatch):
    """A path too long for the system stands for one without permission, which a superuser does not meet."""
    deep = tmp_path / "cohort"
    deep.mkdir()
    monkeypatch.chdir(deep)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordingError, match=r"cannot be listed \(File name too long\)"):
        discover(deep)
