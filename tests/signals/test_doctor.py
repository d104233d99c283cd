"""What the doctor proposes maps what it says, on a whole folder or a sample, by one process or several."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import RecordingError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.discover import Discovered, discover
from sleepfm.signals.doctor import examine_recordings, sample_of
from sleepfm.signals.examine import examine
from sleepfm.signals.files import matching_files
from sleepfm.signals.prepare import prepare
from sleepfm.signals.recording import Recording
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
    # Once, in what is said of the one recording.
    assert text.count("'Brain L'") == 1 and "  unmapped  'Brain L' (200 Hz, uV), " in text
    assert "subjects   1; the usable recording has no scoring\n" in text
    assert "rules      to map signals that are unmapped above, if" in text
    assert f"           {rules['My chin 7']}  # 1 recording\n" in text
    assert yaml.safe_load(rules["ECG V5"])["ECG"] == [{"signal": ["ECG V5"], "derivation": "ECG V5", "unit": "mV"}]
    assert f"{rules['ECG V5']}  # 1 recording; the header states no unit, check this one\n" in text


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that a process has read as Linux tells them")
def test_headers_are_read_without_the_samples_behind_them(tmp_path):
    path = night(tmp_path)
    samples = path.stat().st_size
    assert samples > 500_000

    def read(signals: bool) -> int:
        """Bytes that this process reads from files meanwhile, once everything is imported and the rules are loaded."""
        told = []
        for _ in range(2):
            before = counted()
            (finding,) = examine_recordings(discover(tmp_path), tmp_path, None, signals=signals)
            told.append(counted() - before)
            assert not finding.refused and finding.channels
        return told[-1]

    def counted() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    assert read(signals=False) < 0.2 * samples
    assert read(signals=True) > samples


def test_signals_that_several_recordings_have_are_counted(tmp_path, capsys):
    night(tmp_path)
    night(tmp_path, "b.edf")
    assert main(["doctor", str(tmp_path), "--headers"]) == 0
    text = capsys.readouterr().out
    assert "'Brain L'                    200 Hz   uV            2 of 2" in text and "rules      to map them, if they are" in text
    assert "2 of the usable recordings have no scoring" in text


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
    assert "NOT USED" in text and "belongs to another night" in text and "1 usable, 0 would be refused" in text
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


def unlistable(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one in it of a path too long for the system: one without permission is listed for a superuser."""
    root.mkdir()
    monkeypatch.chdir(root)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    monkeypatch.chdir(root.parent)
    return root


def test_a_folder_that_cannot_be_listed_is_named_and_its_recordings_are_not_passed_over(tmp_path, monkeypatch):
    deep = unlistable(tmp_path / "cohort", monkeypatch)
    with pytest.raises(RecordingError, match=r"cannot be listed \(File name too long\)"):
        discover(deep)
    # Alone it is an error too: nobody knows of a recording.
    with pytest.raises(RecordingError, match=r"cannot be listed \(File name too long\)"):
        discover(deep, unlisted={})


def test_a_folder_that_cannot_be_listed_costs_itself(tmp_path, monkeypatch, capsys):
    root = unlistable(tmp_path / "cohort", monkeypatch)
    night(root, "a.edf")
    night(root, "b.edf")
    (root / "a.csv").write_text("N1\n" * 10)
    unlisted: dict[str, str] = {}
    assert [path.name for path in discover(root, unlisted=unlisted)] == ["a.edf", "b.edf"]
    ((folder, why),) = unlisted.items()
    assert folder.startswith(str(root / "ddd")) and why == "cannot be listed (File name too long)"
    status, text = run_doctor(root, capsys)
    assert status == 1 and "2 recordings: 2 usable, 0 would be refused" in text and "a.csv: 10 epochs scored" in text
    assert f"{folder}\n  REFUSED   cannot be listed (File name too long); make it readable" in text
    assert "folders    1 cannot be listed; what is in them is not counted" in text
    status = main(["doctor", str(root), "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert status == 1 and [item["path"] for item in whole] == [folder, str(root / "a.edf"), str(root / "b.edf")]


def test_a_link_to_a_recording_is_no_second_one(tmp_path, capsys):
    """Nor is a second name of its file; an annexed tree, whose names are links into a hidden folder, is what it shows."""
    night(tmp_path, "b.edf")
    (tmp_path / "a.edf").symlink_to("b.edf")
    os.link(tmp_path / "b.edf", tmp_path / "c.edf")
    status, text = run_doctor(tmp_path, capsys)
    assert status == 1 and "3 recordings: 1 usable, 2 would be refused" in text
    for name in "ac":
        assert f"{tmp_path}/{name}.edf\n  REFUSED   is the same file as {tmp_path}/b.edf, through a link; it would" in text
    annexed = tmp_path / "annexed"
    (annexed / ".git" / "annex").mkdir(parents=True)
    night(annexed / ".git" / "annex", "MD5E-1.edf")
    (annexed / "sub-1_eeg.edf").symlink_to(".git/annex/MD5E-1.edf")
    status, text = run_doctor(annexed, capsys)
    assert status == 0 and "1 recording: 1 usable" in text and f"{annexed}/sub-1_eeg.edf\n" in text


def run_doctor(folder: Path, capsys, *options: str) -> tuple[int, str]:
    status = main(["doctor", str(folder), *options])
    return status, capsys.readouterr().out


def test_headers_alone_tell_all_but_what_is_in_the_signals(tmp_path, capsys, monkeypatch):
    """Samples are not read: a recording whose channels are all dead is found by reading them, not before."""
    scored = write_edf(tmp_path / "a.edf", SIGNALS)
    (tmp_path / "a.csv").write_text("onset,duration,event\n" + "".join(f"{30 * n},30,N2\n" for n in range(10)) + "95,3,Foobar\n")
    write_edf(tmp_path / "dead.edf", [Made("C4-M1", np.zeros(200 * 300), 200)])
    (tmp_path / "broken.edf").write_bytes(b"not a recording" * 30)
    (tmp_path / "b.edf").write_bytes(scored.read_bytes())
    (tmp_path / "b.csv").write_text("onset,duration,stage\n90000,30,W\n")
    status, text = run_doctor(tmp_path, capsys)
    twice = "; 1 of the usable is a duplicate, which a build leaves out"
    assert status == 1 and f"4 recordings: 2 usable, 2 would be refused{twice}" in text
    monkeypatch.setattr(Recording, "read", lambda *_: pytest.fail("a sample was read"))
    status, text = run_doctor(tmp_path, capsys, "--headers")
    assert status == 1 and "4 recordings: 3 usable, 1 would be refused\n" in text
    assert "only headers and scorings were read" in text and "undecided" not in text
    assert "a.csv: 10 epochs scored" in text and "'Foobar' 1, first in" in text and "NOT USED" in text
    assert "'Brain L'" in text and "My chin 7" in text
    whole = json.loads(run_doctor(tmp_path, capsys, "--headers", "--json")[1])
    assert [Path(item["path"]).name for item in whole] == ["a.edf", "b.edf", "broken.edf", "dead.edf"]
    few = json.loads(run_doctor(tmp_path, capsys, "--headers", "--json", "--sample", "2")[1])
    assert len(few) == 2 and all(item in whole for item in few)


def test_processes_find_in_headers_what_one_finds(tmp_path):
    first = write_edf(tmp_path / "000.edf", [Made("C4-M1", noise(100 * 60), 100), Made("Leg 7", noise(100 * 60, 1), 100)])
    for number in range(1, 300):
        shutil.copy(first, tmp_path / f"{number:03}.edf")
    found = discover(tmp_path)
    alone = list(examine_recordings(found, tmp_path, None, signals=False))
    assert list(examine_recordings(found, tmp_path, None, workers=2, signals=False)) == alone and len(alone) == 300


def test_a_polarity_that_nothing_spoke_of_is_not_called_undecided(tmp_path, capsys):
    """Noise of five minutes has no twenty epochs of slow waves; an EMG has no up and down at all."""
    night(tmp_path)
    _, text = run_doctor(tmp_path, capsys)
    titles, *rows = [line.split() for line in text[text.index("channel    in usable") :].splitlines()[:11]]
    assert titles == ["channel", "in", "usable", "recordings", "upside", "down", "undecided", "not", "weighed"]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["EEG_C4"] == ["1", "of", "1", "0", "0", "1"] and shown["EMG_CHIN"] == ["0", "of", "1", "-", "-", "-"]
