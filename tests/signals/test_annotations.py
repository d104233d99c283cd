"""Scorings of every format: as they are in the wild, hostile, and reconciled with their recording."""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from datetime import datetime
from pathlib import Path

import edfio
import pytest
from made_edf import Made, noise, tal, write_edf

from sleepfm.errors import AnnotationError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.discover import discover
from sleepfm.signals.doctor import examine_recordings
from sleepfm.signals.scorings.finder import find_scoring
from sleepfm.signals.scorings.labels import stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile
from sleepfm.signals.scorings.scoring import Event, Scoring, StageInterval

STAGES = [("Wake|0", 0), ("Stage 1 sleep|1", 1), ("Stage 2 sleep|2", 2), ("Stage 3 sleep|3", 3), ("Stage 4 sleep|4", 3)]
STAGES += [("REM sleep|5", 4), ("Movement|6", -1), ("Unscored|9", -1)]


def event(kind, concept, start, duration) -> str:
    kind = "" if kind is None else f"<EventType>{kind}</EventType>"
    times = f"<Start>{start}</Start><Duration>{duration}</Duration>"
    return f"<ScoredEvent>{kind}<EventConcept>{concept}</EventConcept>{times}</ScoredEvent>"


def nsrr(*events: str) -> str:
    head = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n<PSGAnnotation><SoftwareVersion>Compumedics</SoftwareVersion>'
    first = event("", "Recording Start Time", 0, 240)
    return f"{head}<EpochLength>30</EpochLength><ScoredEvents>{first}{''.join(events)}</ScoredEvents></PSGAnnotation>"


NIGHT = [event("Stages|Stages", name, 30 * i, "30.0") for i, (name, _) in enumerate(STAGES)]
NIGHT += [
    event("Respiratory|Respiratory", "Obstructive apnea|Obstructive Apnea", 31.5, 12.5),
    event("Respiratory|Respiratory", "Hypopnea|Hypopnea", 80, 20),
    event("Respiratory|Respiratory", "SpO2 desaturation|SpO2 desaturation", 100, 30),
    event("Arousals|Arousals", "Arousal|Arousal ()", 92, 4),
    event("Respiratory|Respiratory", "Unsure|Unsure", 10, 10),
]
ONE_NAME = [text.replace("Stages|Stages", "Stages").replace("Respiratory|Respiratory", "Respiratory") for text in NIGHT]
INDENTED = nsrr(*NIGHT).replace("><", ">\n\t<")


@pytest.mark.parametrize(
    "content",
    [
        nsrr(*NIGHT).encode(),
        INDENTED.encode(),
        INDENTED.replace("\n", "\r\n").encode(),
        nsrr(*ONE_NAME).encode(),
        nsrr(*reversed(NIGHT)).encode(),
        INDENTED.replace("UTF-8", "UTF-16").encode("utf-16"),
        b"\xef\xbb\xbf" + INDENTED.encode(),
    ],
    ids=["one line", "indented", "CRLF", "one name", "other order", "UTF-16", "BOM"],
)
def test_nsrr_xml_as_in_the_wild(tmp_path, content):
    path = tmp_path / "x-nsrr.xml"
    path.write_bytes(content)
    scoring = read_scoring(path)
    assert stage_labels(scoring, 8).tolist() == [stage for _, stage in STAGES]
    assert [(e.type, e.onset, e.duration) for e in scoring.events] == [
        ("obstructive_apnea", 31.5, 12.5), ("hypopnea", 80, 20), ("arousal", 92, 4), ("desaturation", 100, 30),
    ]  # fmt: skip
    assert scoring.has_events and scoring.ignored == {"Recording Start Time": 1}
    assert [(e.type, e.onset, e.duration) for e in scoring.unclear] == [("Unsure", 10, 10)]


def test_a_night_without_events_was_still_scored_for_them(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(nsrr(*NIGHT[:8]), encoding="utf-8")
    assert read_scoring(path).has_events


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (nsrr(), "without any stage"),
        (
            nsrr(event("Stages|Stages", "Stage 7 sleep|7", 0, 30)),
            r"unknown stage texts: 'Stage 7 sleep\|7' \(1\)",
        ),
        (nsrr(event("Stages|Stages", "Wake|0", "x", 30)), "Start is 'x'"),
        (nsrr(event("Stages|Stages", "Wake|0", 0, "")), "Duration is ''"),
        (nsrr(event("Stages|Stages", "Wake|0", "x" * 90, 30)), f"Start is '{'x' * 40}', not seconds"),
        (nsrr(event("Stages|Stages", "Wake|0", 0, "inf")), "Duration is inf"),
        (nsrr(event("Stages|Stages", "Wake|0", -30, 30)), "Start is -30"),
        ("<PSGAnnotation><ScoredEvents>", "not well-formed"),
        ("<CMPStudyConfig/>", "EpochLength is .., not seconds"),
        ("<CMPStudyConfig><EpochLength>30</EpochLength></CMPStudyConfig>", "without any stage"),
        ("<nonsense/>", "PSGAnnotation"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><PSGAnnotation>&b;</PSGAnnotation>', "document type"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><PSGAnnotation>&a;</PSGAnnotation>', "document type"),
        ('<!DOCTYPE x SYSTEM "http://localhost/x.dtd"><PSGAnnotation/>', "document type"),
        ('<?xml version="1.0" encoding="nonsense"?><PSGAnnotation/>', "not well-formed"),
        ("<a>" * 100_000, "not well-formed"),
        ("hello", "convert it"),
        ("", "convert it"),
    ],
)
def test_wrong_and_hostile_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "x-nsrr.xml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(AnnotationError, match=reason):
        read_scoring(path)


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_scoring(tmp_path / "none.xml")
    path = tmp_path / "huge.xml"
    with path.open("wb") as file:
        file.write(b"<PSGAnnotation>")
        file.truncate(1 << 33)
    with pytest.raises(AnnotationError, match="too large"):
        read_scoring(path)


def test_the_hypnogram_of_sleep_edf(shared_data):
    folder = shared_data / "sleep-edf"
    names = {"W": 0, "1": 1, "2": 2, "3": 3, "4": 3, "R": 4, "?": -1}
    for path in (folder / "SC4001EC-Hypnogram.edf", folder / "SC4001EC-Hypnogram.bdf"):
        theirs = (edfio.read_edf if path.suffix == ".edf" else edfio.read_bdf)(path).annotations
        scoring = read_scoring(path)
        assert [(s.onset, s.duration, s.stage) for s in scoring.stages] == [
            (a.onset, a.duration, names[a.text[-1]]) for a in theirs
        ]
        assert not scoring.has_events and scoring.end == 86_400
    cut = reconcile(scoring, 79_500.0, "cut", "SC4001")
    assert "6900.0 s after" in cut.warnings[0]
    assert stage_labels(cut, 2650)[:1021].tolist() == [0] * 1021
    with pytest.raises(AnnotationError, match=r"6900\.0 s \(230\.0 epochs\) longer"):
        reconcile(scoring, 79_500.0, "error", "SC4001")


def test_a_hypnogram_by_the_aasm(shared_data):
    scoring = read_scoring(shared_data / "edf-zoo" / "wfdb-python" / "test_edfann.edf")
    assert Counter(interval.stage for interval in scoring.stages) == {2: 430, 0: 151, 4: 141, 1: 109, 3: 23}
    assert scoring.ignored == {"Lights off": 1, "Lights on": 1}


@pytest.mark.parametrize("texts", [("Central apnea", "Lights off"), ("N", "V", "?", "W")])
def test_annotations_without_a_stage_are_no_scoring(tmp_path, texts):
    """Single letters are beats as likely as stages."""
    stamp = tal("+0") + b"".join(tal(f"+{10 * i}", "", text) for i, text in enumerate(texts))
    path = write_edf(tmp_path / "h.edf", [Made("X", noise(1), 1)], variant="EDF+C", stamps=[stamp])
    with pytest.raises(AnnotationError, match=f"none of its {len(texts)} annotations"):
        read_scoring(path)


def test_aasm_texts_durations_and_the_start_of_a_hypnogram(tmp_path):
    texts = [("+0", "30", "Sleep stage N1"), ("+30", "", "Sleep stage N3"), ("+60", "30", "Sleep stage R@@EEG C3")]
    texts += [("+40", "11", "Obstructive apnea"), ("+90", "30", "Movement time"), ("+5", "", "Lights off")]
    stamp = tal("+0") + b"".join(tal(*text) for text in texts)
    path = write_edf(tmp_path / "h.edf", [Made("X", noise(1), 1)], variant="EDF+C", stamps=[stamp])
    scoring = read_scoring(path, datetime(2004, 3, 2, 22, 29, 0))
    assert [(s.onset, s.duration, s.stage) for s in scoring.stages] == [
        (60, 30, 1), (90, 30, 3), (120, 30, 4), (150, 30, -1),
    ]  # fmt: skip
    assert [(e.type, e.onset, e.duration) for e in scoring.events] == [("obstructive_apnea", 100, 11)]
    assert scoring.has_events and scoring.ignored == {"Lights off": 1}


@pytest.mark.parametrize("number", ["", "_2", "_3"])
def test_noxturnal_exports(shared_data, number):
    path = shared_data / "nox-a1" / f"noxturnal_events_example_unicode{number}.csv"
    rows = list(csv.reader(path.read_text(encoding="utf-16").splitlines()))[2:]
    first = min(datetime.strptime(row[0], "%d/%m/%Y %H:%M:%S") for row in rows)
    scoring = read_scoring(path, first)
    count = Counter(row[2] for row in rows)
    stages = Counter(interval.stage for interval in scoring.stages)
    assert [stages[stage] for stage in range(5)] == [count[name] for name in ("Éveil", "N1", "N2", "N3", "REM")]
    events = Counter(item.type for item in scoring.events)
    names = {"obstructive_apnea": "A. Obstructive", "central_apnea": "A. Centrale", "mixed_apnea": "A. Mixte"}
    names |= {"hypopnea": "Hypopnée", "desaturation": "Désat", "arousal": "Micro-éveil"}
    assert {kind: events[kind] for kind in names} == {kind: count[name] for kind, name in names.items()}
    assert scoring.has_events is bool(events)
    night = scoring.end
    reconciled = reconcile(scoring, night, "error", "night")
    scored = stage_labels(reconciled, int(night // 30))
    assert (scored >= 0).sum() == pytest.approx(sum(stages.values()), abs=2)
    with pytest.raises(AnnotationError, match="another night"):
        reconcile(read_scoring(path, datetime(2018, 2, 6, 1, 36, 50)), 120.0, "error", "subject1.edf")
    with pytest.raises(AnnotationError, match="start of its recording is unknown"):
        read_scoring(path)


def test_noxturnal_in_english_with_the_month_first(tmp_path):
    path = tmp_path / "n.csv"
    rows = "Start Time,End Time,Event,Duration\r\n[],[],[],[s]\r\n"
    rows += "2/3/2018 11:59:30 PM,2/4/2018 12:00:00 AM,Wake,30\r\n2/4/2018 12:00:00 AM,,N2,30\r\n"
    rows += "2/4/2018 12:00:01.500 AM,,A. Obstructive,12.25\r\n"
    path.write_text(rows, encoding="utf-16")
    scoring = read_scoring(path, datetime(2018, 2, 3, 23, 59, 0))
    assert [(s.onset, s.stage) for s in scoring.stages] == [(30, 0), (60, 2)]
    assert [(e.type, e.onset, e.duration) for e in scoring.events] == [("obstructive_apnea", 61.5, 12.25)]
    path.write_text(rows.replace(",30\r", ",thirty\r"), encoding="utf-16")
    with pytest.raises(AnnotationError, match="row 3"):
        read_scoring(path, datetime(2018, 2, 3, 23, 59, 0))


@pytest.mark.parametrize(("seconds", "accepted"), [(240, True), (262, True), (215, True), (275, False), (205, False)])
def test_lengths_of_run_length_scorings(tmp_path, seconds, accepted):
    path = tmp_path / "x-nsrr.xml"
    path.write_text(nsrr(*NIGHT), encoding="utf-8")
    scoring = read_scoring(path)
    if accepted:
        assert len(reconcile(scoring, seconds, "error", "x").stages) == 8
    else:
        with pytest.raises(AnnotationError, match=r"35\.0 s \(1\.2 epochs\)"):
            reconcile(scoring, seconds, "error", "x")


def test_overlapping_stages_are_refused(tmp_path):
    path = tmp_path / "x-nsrr.xml"
    path.write_text(nsrr(*NIGHT, event("Stages|Stages", "Wake|0", 40, 30)), encoding="utf-8")
    with pytest.raises(AnnotationError, match="starts before"):
        reconcile(read_scoring(path), 240.0, "error", "x")


def test_scorings_are_found_where_cohorts_keep_them(tmp_path):
    edf = tmp_path / "polysomnography" / "edfs" / "shhs1" / "shhs1-200001.edf"
    xml = tmp_path / "polysomnography" / "annotations-events-nsrr" / "shhs1" / "shhs1-200001-nsrr.xml"
    for path in (edf, xml):
        path.parent.mkdir(parents=True)
        path.write_text("x", encoding="utf-8")
    cohort = load_cohort("shhs1")
    for root in (tmp_path, tmp_path / "polysomnography", edf.parent, None):
        assert find_scoring(edf, root, cohort) == xml
    beside = edf.with_name("shhs1-200001-nsrr.xml")
    beside.write_text("x", encoding="utf-8")
    assert find_scoring(edf, tmp_path, cohort) == beside
    assert find_scoring(edf.with_name("shhs1-200002.edf"), tmp_path, cohort) is None


def test_a_scoring_is_looked_for_four_folders_above_and_no_further_unless_the_source_is_wider(tmp_path):
    edf = tmp_path / "five" / "four" / "3" / "2" / "1" / "edfs" / "night.edf"
    edf.parent.mkdir(parents=True)

    def scoring_in(folder):
        path = folder / "annotations-events-nsrr" / "night-nsrr.xml"
        path.parent.mkdir()
        path.write_text("x")
        return path

    beyond = scoring_in(tmp_path / "five")
    assert find_scoring(edf, None, load_cohort("shhs1")) is None
    assert find_scoring(edf, tmp_path, load_cohort("shhs1")) == beyond
    within = scoring_in(tmp_path / "five" / "four")
    assert find_scoring(edf, None, load_cohort("shhs1")) == within


def test_the_hypnogram_that_belongs_to_a_night_of_sleep_edf(tmp_path, shared_data):
    folder = shared_data / "sleep-edf"
    cohort = load_cohort("sleep-edf")
    for ending in ("edf", "bdf"):
        assert find_scoring(folder / f"short_psg.{ending}", folder, cohort) == folder / f"SC4001EC-Hypnogram.{ending}"
    for name in ("SC4001E0-PSG.edf", "SC4001EC-Hypnogram.edf", "SC4002EC-Hypnogram.edf"):
        (tmp_path / name).write_bytes((folder / "short_psg.edf").read_bytes())
    assert find_scoring(tmp_path / "SC4001E0-PSG.edf", None, cohort) == tmp_path / "SC4001EC-Hypnogram.edf"
    (tmp_path / "SC4001EH-Hypnogram.edf").write_bytes(b"")
    with pytest.raises(AnnotationError, match="several scorings fit"):
        find_scoring(tmp_path / "SC4001E0-PSG.edf", None, cohort)


def test_two_scorings_of_one_recording_leave_it_unscored(tmp_path, shared_data):
    folder = shared_data / "sleep-edf"
    (tmp_path / "SC4001E0-PSG.edf").write_bytes((folder / "short_psg.edf").read_bytes())
    for name in ("SC4001EC-Hypnogram.edf", "SC4001EH-Hypnogram.edf"):
        (tmp_path / name).write_bytes((folder / "SC4001EC-Hypnogram.edf").read_bytes())
    signals = [Made(label, noise(6000, n), 100) for n, label in enumerate(["EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal"])]
    write_edf(tmp_path / "SC4011E0-PSG.edf", signals)
    findings = examine_recordings(discover(tmp_path), tmp_path, None)
    found = {Path(finding.path).name: finding.scoring_refused for finding in findings}
    assert "several scorings fit" in found["SC4001E0-PSG.edf"]
    assert found["SC4011E0-PSG.edf"] == ""


def test_a_folder_that_cannot_be_searched_for_a_scoring_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("sleepfm.signals.scorings.finder.matching_files", _denied)
    with pytest.raises(AnnotationError, match=r"cohort: cannot be searched for a scoring \(Permission denied\)"):
        find_scoring(tmp_path / "cohort" / "n1.edf", None, load_cohort("generic"))


def _denied(folder, pattern):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def test_what_of_an_event_lies_in_the_recording_is_kept_and_points_in_it_are():
    events = [(-5, 0), (-5, 20), (0, 0), (40, 12.5), (119, 30), (120, 0), (120, 10)]
    scoring = Scoring(
        stages=(StageInterval(-30.0, 180.0, 2),),
        events=tuple(Event(float(onset), float(duration), "hypopnea") for onset, duration in events),
        source="a table",
        has_events=True,
    )
    found = reconcile(scoring, 120.0, "error", "night")
    assert [(event.onset, event.duration) for event in found.events] == [(0, 15), (0, 0), (40, 12.5), (119, 1)]
    assert "3 events outside the recording are left out" in found.warnings


def test_a_scoring_in_a_folder_above_is_not_taken_for_that_of_a_recording_of_its_name(tmp_path):
    for site in ("one", "two"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "rec01.edf").write_bytes(b"")
    (tmp_path / "rec01.csv").write_text("onset,duration,description\n0,30,W\n")
    generic = load_cohort("generic")
    for site in ("one", "two"):
        assert find_scoring(tmp_path / site / "rec01.edf", tmp_path, generic) is None
    own = tmp_path / "one" / "rec01.csv"
    own.write_text("onset,duration,description\n0,30,N2\n")
    assert find_scoring(tmp_path / "one" / "rec01.edf", tmp_path, generic) == own
