"""The same scoring in every format reads back as itself; each format with what it has in the wild."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from datetime import datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_edf import Made, noise, write_edf
from made_scorings import FORMATS, START, Night, nsrr, profusion

from sleepfm.constants import EVENT_TYPES
from sleepfm.errors import AnnotationError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.edf.annotations import Annotation
from sleepfm.signals.examine import examine
from sleepfm.signals.scorings.edf_plus import from_annotations
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
from sleepfm.signals.scorings.luna_annot import is_luna_annot
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.signals.scorings.vocabulary import event_of, stage_of, stages_of_numbers


@st.composite
def nights(draw):
    """Nights that begin and end with a scored epoch, so that every format has a first and a last stage."""
    middle = draw(st.lists(st.integers(-1, 4), min_size=1, max_size=40))
    stages = (draw(st.integers(0, 4)), *middle, draw(st.integers(0, 4)))
    tenths = st.integers(1, 10 * 30 * len(stages) - 300)
    events = draw(st.lists(st.tuples(st.sampled_from(EVENT_TYPES), tenths, st.integers(1, 299)), max_size=8))
    ordered = sorted((kind, onset / 10, lasts / 10) for kind, onset, lasts in events)
    return Night(stages, tuple(ordered))


@pytest.mark.parametrize("name", FORMATS)
@example(night=Night((0, 0, 0), (("hypopnea", 37.7, 0.1), ("hypopnea", 37.7, 0.2))))  # one of them with a date
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(night=nights())
def test_a_scoring_reads_back_as_itself(tmp_path, name, night):
    write, with_events = FORMATS[name]
    path = tmp_path / name
    write(night, path)
    scoring = read_scoring(path, START, night.seconds)
    assert stage_labels(scoring, len(night.stages)).tolist() == list(night.stages)
    if not with_events:
        assert not scoring.events and not scoring.has_events
        return
    found = sorted((event.type, event.onset, event.duration) for event in scoring.events)
    assert [kind for kind, *_ in found] == [kind for kind, *_ in night.events]
    assert np.allclose([row[1:] for row in found], [row[1:] for row in night.events], atol=1e-3, rtol=0)
    assert scoring.has_events or not night.events
    assert reconcile(scoring, night.seconds, "error", "night").events == scoring.events


NIGHT = Night((0, 0, 1, 2, 3, 3, -1, 4, 2, 0), (("hypopnea", 70.5, 20.0),))


@pytest.mark.parametrize("unit", ["ms", "epochs", "minutes", "both ms", "attribute", "Starttime"])
def test_starts_in_other_units(tmp_path, unit):
    path = tmp_path / "x-nsrr.xml"
    nsrr(NIGHT, path, ms=unit == "ms")
    text = path.read_text()
    if unit in ("epochs", "minutes"):
        scale = {"epochs": 30, "minutes": 60}[unit]
        for second in sorted({onset for _, onset, _ in NIGHT.runs} | {70.5, 5}, reverse=True):
            text = text.replace(f"<Start>{second:g}</Start>", f"<Start >{second / scale:.12g}</Start>")
    elif unit == "both ms":
        nsrr(NIGHT, path, ms=True)
        text = path.read_text()
        for lasts in {lasts for _, _, lasts in NIGHT.runs} | {20.0}:
            text = text.replace(f"<Duration>{lasts:g}</Duration>", f"<Duration >{1000 * lasts:g}</Duration>")
    elif unit == "attribute":
        nsrr(NIGHT, path, ms=True)
        text = path.read_text().replace("<Start>", "<Start Units='ms'>")
    elif unit == "Starttime":
        text = text.replace("Start>", "Starttime>")
    path.write_text(text)
    scoring = read_scoring(path)
    assert stage_labels(scoring, 10).tolist() == list(NIGHT.stages)
    (event,) = scoring.events
    assert (event.onset, event.duration) == pytest.approx((70.5, 20.0), abs=1e-6)
    assert bool(scoring.warnings) is (unit in ("ms", "epochs", "minutes", "both ms"))


def test_an_unknown_unit_is_refused(tmp_path):
    path = tmp_path / "x-nsrr.xml"
    nsrr(NIGHT, path)
    path.write_text(path.read_text().replace("<Start>", "<Start Units='fortnights'>"))
    with pytest.raises(AnnotationError, match="unit of Start is 'fortnights'"):
        read_scoring(path)


def test_doubt_is_a_stage_only_among_stages(tmp_path):
    path = tmp_path / "x.xml"
    nsrr(NIGHT, path)
    path.write_text(path.read_text().replace("Unscored|9", "Unsure|Unsure"))
    scoring = read_scoring(path)
    assert stage_labels(scoring, 10).tolist() == list(NIGHT.stages)
    assert [event.type for event in scoring.unclear] == ["Unsure"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("<SleepStage>9", "<SleepStage>8"), "stage of epoch 7 is '8'"),
        (("<EpochLength>30", "<EpochLength>0"), "EpochLength is 0 s"),
        (("<EpochLength>30", "<EpochLength>x"), "EpochLength is 'x'"),
    ],
)
def test_wrong_profusion_files_are_refused(tmp_path, change, reason):
    path = tmp_path / "x-profusion.xml"
    profusion(NIGHT, path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(AnnotationError, match=reason):
        read_scoring(path)


def test_epochs_of_other_lengths(tmp_path):
    path = tmp_path / "x.xml"
    profusion(Night((0, 0, 0, 2, 2, 2), ()), path)
    path.write_text(path.read_text().replace("<EpochLength>30", "<EpochLength>20"))
    assert stage_labels(read_scoring(path), 4).tolist() == [0, 0, 2, 2]


def test_the_times_that_lunas_documentation_calls_identical(tmp_path):
    # zzz.bwh.harvard.edu/luna/vignettes/times: with this start, all are 120 to 150 s.
    start = datetime(2016, 7, 29, 21, 23, 23)
    path = tmp_path / "a.annot"
    for times in [
        "e:5\t.", "e:5\te:5", "e:5:30\t.", "120\t150", "120\t+30", "21:25:23\t21:25:53", "9:25:23pm\t9:25:53pm",
        "9:25:23 pm\t9:25:53 pm", "21:25:23\t+30", "0+00:02:00\t0+00:02:30", "0+00:02:00\t+30",
        "29-07-16-21:25:23\t29-07-16-21:25:53", "29-Jul-2016-21:25:23\t+30", "21:25:23\t...\nlights\t.\t150\t150",
    ]:  # fmt: skip
        path.write_text(f"N2\t.\t{times}\n")
        (interval,) = read_scoring(path, start).stages
        assert (interval.onset, interval.duration, interval.stage) == pytest.approx((120, 30, 2)), times
    path.write_text("W\t.\t21:25:23\t...\n")
    assert read_scoring(path, start, 3600.0).end == 3600.0
    with pytest.raises(AnnotationError, match="start of its recording is unknown"):
        read_scoring(path)


def test_the_instance_of_an_annotation_is_beside_a_class_that_says_what_it_is(tmp_path):
    path = tmp_path / "a.annot"
    path.write_text("N2\tW\t0\t30\nHypopnea\tleg\t40\t52\nSleepStage\tR\t60\t90\n")
    scoring = read_scoring(path)
    assert [interval.stage for interval in scoring.stages] == [2, 4]
    assert [(event.onset, event.type) for event in scoring.events] == [(40, "hypopnea")] and not scoring.others


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("W 0 30\nN1 30\n", "row 2 has 2 columns, but the file has 3"),
        ("W 0 30\nN1 soon 60\n", "row 2: 'soon' is not a time"),
        ("W 30 10\n", "ends at 10 s, before it starts"),
        ("class start stop\nspindle 0 30\n", "has no stage"),
        ("W 0 1e300\n", "damaged"),
    ],
)
def test_wrong_annot_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "x.annot"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=reason):
        read_scoring(path)


def test_real_hypnograms_one_stage_a_line(shared_data):
    for name, counts in (
        ("data_full_6hrs_100Hz_hypno_30s.txt", [43, 22, 318, 182, 155]),
        ("sub-02_hypno_30s.txt", [36, 9, 31, 22, 0]),
    ):
        scoring = read_scoring(shared_data / "yasa" / name)
        labels = stage_labels(scoring, sum(counts))
        assert [int((labels == stage).sum()) for stage in range(5)] == counts and scoring.whole_night


def test_numbers_that_may_mean_two_stages_are_refused(tmp_path):
    path = tmp_path / "h.txt"
    path.write_text("\n".join(["0", "1", "2", "3", "4", "3", "4", "3", "2", "1", "0"]))
    with pytest.raises(AnnotationError, match="4 may be stage 4 or REM"):
        read_scoring(path)
    path.write_text("\n".join(["0", "1", "2", "3", "2", "4", "4", "2", "4", "0"]))
    assert stage_labels(read_scoring(path), 10).tolist() == [0, 1, 2, 3, 2, 4, 4, 2, 4, 0]
    path.write_text("0\n1\n12\n")
    with pytest.raises(AnnotationError, match="12 is not a stage"):
        read_scoring(path)
    path.write_text("W\nN1\nhello\n")
    with pytest.raises(AnnotationError, match="line 3: 'hello' is no stage"):
        read_scoring(path)
    for mark in (5, 6, 7, 9):
        assert stages_of_numbers([0, 4, mark])[4] == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("onset,duration,description\nx,30,Sleep stage W\n", r"row 2 \('Sleep stage W'\): 'x' is neither seconds"),
        ("onset,duration,description\n0,-3,Sleep stage W\n", "duration is -3 s"),
        ("onset,duration,description\n0,nan,Sleep stage W\n1e12,3,Sleep stage W\n", "damaged"),
        ("onset,duration,description\n0,30,Spindle\n", "has no stage"),
        ("epoch,stage\n1,W\nx,W\n", "line 3: 'x' is not an epoch number"),
        ("Start Time,Duration,Event\n99:99:99,30,Wake\n", "not a time of day|neither seconds"),
        ("onset,duration,description\n" + "0,30,Sleep stage W\n" * 100_001, "more than 100000 rows"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, reason):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=reason):
        read_scoring(path, START)


def test_a_scoring_of_a_night_past_midnight_that_began_before_the_recording(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("Start Time,Duration (seconds),Event\n22:58:17,60,Wake\n00:00:00,30,Stage2\n")
    scoring = read_scoring(path, START, 8 * 3600.0)
    assert [interval.onset for interval in scoring.stages] == [-30.0, 3673.0]


def test_the_excerpt_of_wscs_log_in_lunas_documentation(tmp_path):
    path = tmp_path / "x.allscore.txt"
    path.write_text(
        "22:04:41.13\tLIGHTS OUT\n22:13:11.29\tPOSITION - LEFT\n22:30:59.00\tSTAGE - N1\n"
        "22:31:42.64\tLM - DUR: 0.7 SEC. - ISOLATED\n22:31:58.80\tLM - DUR: 1.4 SEC. - ISOLATED\n22:31:59.00\tSTAGE - N2\n"
        "22:32:59.00\tSTAGE - W\n22:33:10.93\tAROUSAL - DUR: 3.0 SEC. - SPONTANEOUS\n22:33:59.00\tSTAGE - N2\n"
        "22:34:00.47\tRESPIRATORY EVENT - DUR: 44.9 SEC. - HYPOPNEA - DESAT 91.6 %\n"
        "22:34:01.69\tDESATURATION - DUR: 55.8 SEC. - MIN 91.6 % - DROP 3.1 %\n"
    )
    scoring = read_scoring(path, datetime(2000, 1, 1, 22, 0, 59), 2400.0)
    assert [(round(s.onset, 6), round(s.duration, 6), s.stage) for s in scoring.stages] == [
        (1800, 60, 1), (1860, 60, 2), (1920, 60, 0), (1980, 420, 2),
    ]  # fmt: skip
    assert [(e.type, round(e.onset, 2), e.duration) for e in scoring.events] == [
        ("arousal", 1931.93, 3.0), ("hypopnea", 1981.47, 44.9), ("desaturation", 1982.69, 55.8),
    ]  # fmt: skip
    with pytest.raises(AnnotationError, match="start of its recording is unknown"):
        read_scoring(path)


def test_a_line_of_a_log_that_reads_like_a_stage_is_none_and_what_may_be_an_event_is_open(tmp_path):
    path = tmp_path / "x.allscore.txt"
    path.write_text("22:00:00\tSTAGE - N2\n22:02:10\tWake\n22:05:05\tObstructive apnea\n22:10:00\tLIGHTS ON\n")
    scoring = read_scoring(path, datetime(2000, 1, 1, 22, 0), 600.0)
    assert [(stage.onset, stage.duration, stage.stage) for stage in scoring.stages] == [(0, 600, 2)]
    assert "remark Wake" in [*scoring.ignored, *(event.type for event in scoring.unclear)]
    # An apnea without a duration: positive where it begins.
    assert np.flatnonzero(event_labels(scoring, 20, LABEL_EVENTS["apnea"]) == 1).tolist() == [10]


@pytest.mark.parametrize("row", ["N2\t.\t.\t.", "N2\t.\tsoon\t.", "N2\t.\t0\tlater", "N2\t.\tsoon\t30"])
def test_rows_without_times_are_no_annot_file(row):
    assert is_luna_annot("N2\t.\t0\t30\n") and not is_luna_annot(f"{row}\n")


def test_onsets_of_texts_are_those_of_the_recording():
    scoring = from_annotations([Annotation(7.5, 30.0, "Sleep stage N2"), Annotation(12.25, 10.0, "Hypopnea")], "x")
    assert scoring is not None
    assert [stage.onset for stage in scoring.stages] == [7.5] and [event.onset for event in scoring.events] == [12.25]


@pytest.mark.parametrize("start", ["-0.5", "-30", "inf", "nan"])
def test_a_stage_before_the_recording_or_at_no_time_refuses_an_xml(tmp_path, start):
    path = tmp_path / "night-nsrr.xml"
    path.write_text(
        "<PSGAnnotation><ScoredEvents><ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Wake|0</EventConcept>"
        f"<Start>{start}</Start><Duration>30</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>"
    )
    with pytest.raises(AnnotationError, match=f"Start is {start}"):
        read_scoring(path)


@pytest.mark.parametrize("root", ["Annotations", "CMP", "Zzz"])
def test_an_xml_of_another_kind_is_refused_by_its_root(tmp_path, root):
    path = tmp_path / "night.xml"
    path.write_text(f"<{root}><SleepStages><SleepStage>0</SleepStage></SleepStages></{root}>")
    with pytest.raises(AnnotationError, match=f"XML with the root '{root}'"):
        read_scoring(path)


@pytest.mark.parametrize("write", [nsrr, profusion])
def test_a_format_that_codes_whole_nights_is_refused_where_it_is_shorter(tmp_path, write):
    edf = write_edf(tmp_path / "night.edf", [Made("EEG", noise(125 * 240), 125)])
    scoring = tmp_path / "night.xml"
    write(Night((0, 1, 2, 2), ()), scoring)
    with pytest.raises(AnnotationError, match=r"120\.0 s \(4\.0 epochs\) shorter"):
        examine(edf, load_cohort("shhs1"), scoring=scoring, use="require")


def test_lengths_are_reconciled_in_every_format(tmp_path):
    """More than an epoch too long is an error that says by how much, through the way that builds go."""
    for name, (write, _) in FORMATS.items():
        folder = tmp_path / name
        folder.mkdir()
        edf = write_edf(
            folder / "night.edf", [Made("EEG", noise(125 * 60), 125)],
            start=(START.strftime("%d.%m.%y"), START.strftime("%H.%M.%S")),
        )  # fmt: skip
        scoring = folder / f"night-scoring.{name}"
        write(Night((0, 1, 2, 3, 2), ()), scoring)
        with pytest.raises(AnnotationError, match=r"90\.0 s \(3\.0 epochs\) longer|120\.0 s \(4\.0 epochs\) longer"):
            examine(edf, load_cohort("shhs1"), scoring=scoring, use="require")


def test_vocabulary_of_the_cohorts():
    for text, stage in {
        "Stage 1 sleep": 1, "Stage1": 1, "SRO:Stage2Sleep": 2, "NREM4": 3, "SDO:RapidEyeMovementSleep": 4, "Wake": 0,
        "UnknownStage": -1, "Sleep stage ?": -1, "STAGE - N3": 3, "STAGE - NO STAGE": -1, "STAGE - MVT": -1, "Éveil": 0,
    }.items():  # fmt: skip
        assert stage_of(text) == stage, text
    for text, kind in {
        "Arousal ()": "arousal", "ASDA arousal": "arousal", "Arousal (ARO Limb)": "arousal", "arousal_plm": "arousal",
        "Arousal resulting from periodic leg movement": "arousal", "RERA": "arousal", "EEG Arousal": "arousal",
        "SpO2 desaturation": "desaturation", "Oxygen Desaturation": "desaturation", "desat": "desaturation",
        "ObstructiveApnea": "obstructive_apnea", "apnea_central": "central_apnea", "SDO:HypopneaSleepEvent": "hypopnea",
        "Obstructive Hypopnea": "hypopnea", "Hypopnée": "hypopnea", "A. Mixte": "mixed_apnea",
        "SpO2 artifact": None, "Unsure": None, "Periodic breathing": None, "Limb movement - left": None, "PLM (Left)": None,
        "Technician Notes": None, "Respiratory artifact": None, "Arousal artifact": None, "Lights on": None,
    }.items():  # fmt: skip
        assert event_of(text) == kind, text
        assert stage_of(text) is None, text


@pytest.mark.parametrize(
    "text",
    [
        "22:00:00 x\n" + "\n" * 300_000,
        "22:00:00 STAGE - W\n22:00:30 a" + " " * 300_000 + "!\n",
        "# " + "1" * 300_000 + "\n1\nx\n",
        "onset,stage," + " (" * 300_000 + "\n0,spindle\n",
        '"' + "x" * 300_000,
        '<?xml version="1.0" encoding="nonsense"?><PSGAnnotation/>',
    ],
    ids=["empty lines", "blanks in a log", "digits in a legend", "blanks in a title", "an open quote", "an unknown encoding"],
)
def test_time_grows_with_the_length_of_hostile_texts_and_no_faster(tmp_path, text):
    path = tmp_path / "x.txt"
    path.write_text(text)
    began = time.process_time()
    with contextlib.suppress(AnnotationError):
        read_scoring(path, START)
    assert time.process_time() - began < 5  # hours, where an expression is quadratic


def test_event_labels_of_very_long_events_cost_nothing():
    from sleepfm.signals.scorings.scoring import Event, Scoring, StageInterval

    scoring = Scoring((StageInterval(0, 30, 0),), tuple(Event(0.0, 1e9, "hypopnea") for _ in range(20_000)), "x", True)
    assert event_labels(scoring, 2000, ("hypopnea",)).all()


def test_the_fifty_most_frequent_texts_without_effect_are_named(tmp_path):
    path = tmp_path / "night.csv"
    names = [f"leg movement {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    rows = ["0,30,Sleep stage N2", *(f"{i},1,{name}" for i, name in enumerate([*names, *names[:50]]))]
    path.write_text("onset,duration,event\n" + "\n".join(rows) + "\n")
    assert read_scoring(path).ignored == {**dict.fromkeys(names[:50], 2), "...": 10}


def test_counts_of_texts_stay_bounded_and_lose_the_rarest():
    counts = TextCounts(ignored=Counter({f"text {i}": 1 + i % 2 for i in range(19_999)}))
    counts.merge(TextCounts(ignored=Counter({"another": 1})))
    assert len(counts.ignored) == 20_000
    counts.merge(TextCounts(ignored=Counter({"and another": 1})))
    assert len(counts.ignored) == 10_000 and counts.ignored["text 1"] == 2


def test_texts_are_told_with_the_most_frequent_first():
    counts = TextCounts(ignored=Counter({"Qwa": 1, "Qwb": 5, "Qwc": 5}))
    (told,) = counts.not_understood()
    assert told.endswith("'Qwb' 5, 'Qwc' 5, 'Qwa' 1")
