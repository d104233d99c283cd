"""``sleepfm synth`` writes what NSRR writes, byte for byte the same each time."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import edfio
import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.cli import main
from sleepfm.errors import UsageError
from sleepfm.signals.edf.writer import Channel, write_edf
from sleepfm.synthetic.cohort import write_cohort, write_subject
from sleepfm.synthetic.layout import load_layout
from sleepfm.synthetic.night import draw_night
from sleepfm.synthetic.subject import draw_subject
from sleepfm.synthetic.subject_table import row_of

EDFS = Path("polysomnography/edfs/shhs1")
TABLE = "datasets/shhs1-dataset-0.21.0.csv"
XMLS = Path("polysomnography/annotations-events-nsrr/shhs1")


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cohort")
    write_cohort(out, subjects=2, hours=0.5, seed=4)
    return out


def test_layout(cohort):
    assert sorted(contents(cohort)) == [
        TABLE,
        str(XMLS / "shhs1-200001-nsrr.xml"),
        str(XMLS / "shhs1-200002-nsrr.xml"),
        str(EDFS / "shhs1-200001.edf"),
        str(EDFS / "shhs1-200002.edf"),
        "synth.json",
    ]
    statement = json.loads((cohort / "synth.json").read_text())
    assert statement.items() >= {"subjects": 2, "hours": 0.5, "seed": 4, "cohort": "shhs1", "complete": True}.items()


def test_same_bytes_with_two_processes_and_in_another_order(cohort, tmp_path):
    write_cohort(tmp_path / "two", subjects=2, hours=0.5, seed=4, workers=2)
    assert contents(tmp_path / "two") == contents(cohort)
    alone = write_subject(tmp_path / "alone", "shhs1", 4, 60, 1)
    assert alone.read_bytes() == (cohort / EDFS / "shhs1-200002.edf").read_bytes()


def test_another_seed_and_subject_give_other_nights(cohort, tmp_path):
    write_cohort(tmp_path, subjects=1, hours=0.5, seed=5)
    first, second = (cohort / EDFS / f"shhs1-20000{n}.edf" for n in (1, 2))
    other = tmp_path / EDFS / "shhs1-200001.edf"
    assert len({path.read_bytes() for path in (first, second, other)}) == 3


def test_rerun_keeps_whole_files_makes_missing_ones_and_grows(tmp_path):
    write_cohort(tmp_path, subjects=2, hours=0.2, seed=1)
    before = contents(tmp_path)
    kept = tmp_path / EDFS / "shhs1-200001.edf"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / XMLS / "shhs1-200002-nsrr.xml").unlink()
    write_cohort(tmp_path, subjects=2, hours=0.2, seed=1)
    assert contents(tmp_path) == before
    assert kept.stat().st_mtime_ns == stamp
    write_cohort(tmp_path, subjects=3, hours=0.2, seed=1)
    assert contents(tmp_path).items() >= {k: v for k, v in before.items() if k not in ("synth.json", TABLE)}.items()


def test_a_killed_run_leaves_nothing_that_looks_whole_and_is_finished_by_the_next(tmp_path):
    command = [sys.executable, "-m", "sleepfm.cli", "synth", str(tmp_path / "killed"), "--subjects", "4"]
    command += ["--hours", "1", "--seed", "2", "--workers", "1", "--clean"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    first = tmp_path / "killed" / EDFS / "shhs1-200001.edf"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not json.loads((tmp_path / "killed" / "synth.json").read_text())["complete"]
    for edf in (tmp_path / "killed").rglob("*.edf"):
        assert edf.stat().st_size == 3840 + 3600 * 1270
    assert subprocess.run(command, capture_output=True).returncode == 0
    write_cohort(tmp_path / "whole", subjects=4, hours=1, seed=2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 2}, {"hours": 0.3}, {"subjects": 1}])
def test_a_folder_of_another_cohort_is_refused(tmp_path, change):
    arguments = {"subjects": 2, "hours": 0.2, "seed": 1}
    write_cohort(tmp_path, **arguments)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=next(iter(change))):
        write_cohort(tmp_path, **{**arguments, **change})
    assert contents(tmp_path) == before


def test_header_is_that_of_shhs(cohort, shared_data):
    real = (shared_data / "edf-zoo" / "nsrr-edfize" / "zero-data-records.edf").read_bytes()[:3840]
    own = (cohort / EDFS / "shhs1-200001.edf").read_bytes()[:3840]
    # All but the date, the clock and the number of records; SHHS has both "OX stat" and "OX STAT".
    assert own[184:236] == real[184:236]
    assert own[244:].upper() == real[244:].upper()


def test_mne_and_edfio_read_what_was_drawn(cohort):
    path = cohort / EDFS / "shhs1-200001.edf"
    night = draw_night(4, 0, 60)
    raw = mne.io.read_raw_edf(path, verbose="error")
    assert raw.ch_names == [channel.label for channel in load_layout("shhs1").channels]
    assert raw.times[-1] == pytest.approx(1800.0, abs=0.01)
    edf = edfio.read_edf(path)
    assert edf.num_data_records == 1800 and edf.data_record_duration == 1.0
    layout = load_layout("shhs1")
    for signal, channel, drawn in zip(edf.signals, layout.channels, layout.draw(night, 0), strict=True):
        low, high = sorted((float(channel.physical_min), float(channel.physical_max)))
        step = (high - low) / (channel.digital_max - channel.digital_min)
        assert signal.sampling_frequency == channel.rate
        np.testing.assert_allclose(signal.data, np.clip(drawn, low, high), atol=0.501 * step + 1e-5)


def test_recording_reads_back_through_the_package(cohort):
    from sleepfm.signals.recording import read_recording
    from sleepfm.signals.scorings.reader import read_scoring

    recording = read_recording(cohort / EDFS / "shhs1-200001.edf")
    assert recording.duration == 1800.0 and not recording.warnings
    night = draw_night(4, 0, 60)
    scoring = read_scoring(cohort / XMLS / "shhs1-200001-nsrr.xml")
    assert sum(interval.duration for interval in scoring.stages) == 1800.0
    found = sorted((event.type, event.onset, event.duration) for event in scoring.events)
    expected = sorted((event.kind, event.onset, event.duration) for event in night.events)
    assert len(expected) > 0 and len(found) == len(expected)
    for (kind, onset, duration), (drawn, *times) in zip(found, expected, strict=True):
        assert kind == drawn and [onset, duration] == pytest.approx(times, abs=0.051)


def test_xml_has_the_structure_of_nsrr(cohort):
    root = ElementTree.parse(cohort / XMLS / "shhs1-200002-nsrr.xml").getroot()
    assert root.tag == "PSGAnnotation"
    assert [child.tag for child in root] == ["SoftwareVersion", "EpochLength", "ScoredEvents"]
    events = root.findall("ScoredEvents/ScoredEvent")
    assert events[0].findtext("EventConcept") == "Recording Start Time"
    assert float(events[0].findtext("Duration", "")) == 1800.0
    stages = [event for event in events if event.findtext("EventType") == "Stages|Stages"]
    cursor = 0.0
    for event in stages:
        assert float(event.findtext("Start", "")) == cursor
        cursor += float(event.findtext("Duration", ""))
    assert cursor == 1800.0
    concepts = [event.findtext("EventConcept") for event in stages]
    assert all(a != b for a, b in itertools.pairwise(concepts))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rate=st.integers(1, 20), seconds=st.integers(1, 5))
def test_edf_round_trip(tmp_path_factory, data, rate, seconds):
    channels = (
        Channel("A", "uV", rate, "-125.00", "125.00", -128, 127),
        Channel("B", "", 3, "1.00", "-1.00", -128, 127),
    )
    digital = [
        np.array(data.draw(st.lists(st.integers(-128, 127), min_size=n, max_size=n))) for n in (rate * seconds, 3 * seconds)
    ]
    physical = []
    for channel, values in zip(channels, digital, strict=True):
        low, high = float(channel.physical_min), float(channel.physical_max)
        physical.append((low + (values + 128) * (high - low) / 255).astype(np.float32))
    path = tmp_path_factory.mktemp("edf") / "x.edf"
    write_edf(path, channels, physical, seconds, "22.00.00")
    edf = edfio.read_edf(path)
    for signal, values in zip(edf.signals, digital, strict=True):
        np.testing.assert_array_equal(signal.digital, values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--subjects", "0"], "--subjects 0"),
        (["--hours", "0.1"], "--hours 0.1"),
        (["--hours", "nan"], "--hours nan"),
        (["--seed", "-1"], "--seed -1"),
        (["--cohort", "nonsense"], "shhs1"),
        (["--workers", "0"], "--workers 0"),
    ],
)
def test_nonsense_is_one_line_and_status_2(tmp_path, capsys, change, named):
    out = tmp_path / "out"
    assert main(["synth", str(out), "--subjects", "1", "--hours", "0.2", *change]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not out.exists()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "polysomnography").write_text("not a folder")
    with pytest.raises(UsageError, match="contains files that this command did not write"):
        write_cohort(tmp_path, subjects=1, hours=0.2, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["polysomnography"]


def test_command_writes_and_says_where(tmp_path, capsys):
    assert main(["synth", str(tmp_path), "--subjects", "1", "--hours", "0.2", "--seed", "9", "--clean"]) == 0
    said = capsys.readouterr()
    assert str(EDFS) in said.out and said.err == ""
    assert (tmp_path / EDFS / "shhs1-200001.edf").stat().st_size == 3840 + 720 * 1270


def test_the_table_of_the_people_grows_with_them_and_is_nobody_elses(tmp_path):
    write_cohort(tmp_path, subjects=3, hours=0.11, seed=1)
    lines = (tmp_path / TABLE).read_text().splitlines()
    assert lines[0] == "nsrrid,visitnumber,gender,age_s1,bmi_s1,ahi_a0h3a"
    assert [line.split(",")[0] for line in lines[1:]] == ["200001", "200002", "200003"]
    write_cohort(tmp_path, subjects=4, hours=0.11, seed=1)
    assert (tmp_path / TABLE).read_text().splitlines()[:4] == lines
    (tmp_path / TABLE).write_text("mine\n")
    with pytest.raises(UsageError, match="exists and is not the table of this cohort"):
        write_cohort(tmp_path, subjects=4, hours=0.11, seed=1)
    assert (tmp_path / TABLE).read_text() == "mine\n"


def test_people_of_a_table_are_of_both_sexes_and_not_all_of_each_is_known():
    rows = [row_of(draw_subject(1, number), number) for number in range(200)]
    assert 70 < sum(row.sex == "female" for row in rows) < 130
    assert 5 < sum(row.bmi is None for row in rows) < 40
    assert all(17 < row.bmi < 45 for row in rows if row.bmi)
    assert {row.family for row in rows[:6]} == {1, 2}
