"""Tables of stages and events are read by their columns, and refused where these do not say when a row is or what it is."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_edf import Made, noise, write_edf

from sleepfm.errors import AnnotationError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.identity import identify
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.finder import find_scoring
from sleepfm.signals.scorings.labels import stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.scoring import Scoring

START = datetime(2020, 2, 1, 22, 0, 0)
# 36 epochs from the fifth of a recording of 40.
STAGES = [0] * 6 + [1] * 4 + [2] * 10 + [3] * 6 + [4] * 5 + [0] * 5
BEGIN = 4
REMLOGIC = {0: ("W", "SLEEP-S0"), 1: ("S1", "SLEEP-S1"), 2: ("S2", "SLEEP-S2"), 3: ("S3", "SLEEP-S3"), 4: ("R", "SLEEP-REM")}
TITLES = "Sleep Stage\tTime [hh:mm:ss]\tEvent\tDuration[s]"
PREAMBLE = "RemLogic Event Export\nPatient:\tX\nRecording Date:\t01/02/2020\nEvents Included:\nSLEEP-S0\nSLEEP-REM\n\n"


def clock(seconds: float, start: datetime = START) -> str:
    return f"{start + timedelta(seconds=seconds):%H:%M:%S}"


def remlogic(stages: list[int] = STAGES, first: float = 30.0 * BEGIN, start: datetime = START) -> list[str]:
    """Rows as RemLogic exports them, without events."""
    return [f"{REMLOGIC[stage][0]}\t{clock(first + 30 * n, start)}\t{REMLOGIC[stage][1]}\t30" for n, stage in enumerate(stages)]


def read(folder: Path, text: str, start: datetime | None = START, duration: float | None = 1200.0) -> Scoring:
    path = folder / "night.csv"
    path.write_text(text, encoding="utf-8")
    return read_scoring(path, start, duration)


@pytest.mark.parametrize("preamble", ["", PREAMBLE], ids=["titles first", "preamble"])
def test_events_among_the_epochs_of_remlogic_are_events(tmp_path, preamble):
    """A title row of RemLogic (CAP Sleep Database): events repeat the stage of their epoch, and lie between the epochs."""
    rows = remlogic()
    for place, name in ((21, "AROUSAL"), (13, "APNEA-OBSTRUCTIVE"), (4, "AROUSAL")):
        rows.insert(place, f"{rows[place - 1][:2].strip()}\t{clock(30 * (BEGIN + place - 1) + 7)}\t{name}\t12")
    scoring = read(tmp_path, preamble + "\n".join([TITLES, *rows, ""]))
    assert stage_labels(scoring, 40).tolist() == [-1] * BEGIN + STAGES
    assert [(event.type, event.onset, event.duration) for event in scoring.events] == [
        ("arousal", 217.0, 12.0), ("obstructive_apnea", 487.0, 12.0), ("arousal", 727.0, 12.0),
    ]  # fmt: skip


def test_a_table_of_remlogic_beside_its_recording(tmp_path):
    """Rows that begin 27 s into their epochs: each epoch has the stage of its larger part."""
    path = write_edf(
        tmp_path / "a.edf", [Made("C3-M2", noise(1200 * 100), 100)], start=("01.02.20", "22.00.03"), seconds="1"
    )  # fmt: skip
    rows = remlogic([0] * 3 + STAGES, 30.0)
    (tmp_path / "a.csv").write_text("\n".join([TITLES, *rows, ""]))
    assert prepare(path).stage.tolist() == [-1, *[0] * 3, *STAGES]


def test_a_row_that_may_be_an_epoch_or_an_event_is_refused(tmp_path):
    rows = remlogic()
    rows[7] = rows[7].replace("SLEEP-S1", "AROUSAL")
    with pytest.raises(AnnotationError, match=r"row 9: has a stage and the event 'AROUSAL' but no row has only the stage"):
        read(tmp_path, "\n".join([TITLES, *rows, ""]))
    rows = remlogic()
    rows[7] = rows[7].replace("SLEEP-S1", "SLEEP-S2")
    with pytest.raises(AnnotationError, match="row 9: its stage is 'S1' and its event 'SLEEP-S2'"):
        read(tmp_path, "\n".join([TITLES, *rows, ""]))


def test_an_epoch_whose_event_is_empty_is_an_epoch(tmp_path):
    rows = [f"{30 * n},{REMLOGIC[stage][0]}," for n, stage in enumerate(STAGES)]
    rows.insert(13, "365,S2,Hypopnea")
    scoring = read(tmp_path, "\n".join(["onset,stage,event", *rows, ""]))
    assert stage_labels(scoring, 36).tolist() == STAGES and [event.onset for event in scoring.events] == [365.0]


@pytest.mark.parametrize(
    "titles",
    [
        "Sleep Stage,Position,Event",
        "Stage,Confidence",
        "Stage,Onset (samples)",
        "User-Defined Stage,CAST-Defined Stage",
        "Stage,",
    ],
)
def test_more_columns_than_stage_and_epoch_are_no_list(tmp_path, titles):
    """Rows of something else may lie between the epochs: nothing says when each is."""
    text = "\n".join([titles, *(f"{REMLOGIC[stage][0]}{',x' * titles.count(',')}" for stage in STAGES), ""])
    if titles == "Stage,":
        assert read(tmp_path, text).whole_night
        return
    with pytest.raises(
        AnnotationError, match=f"{titles.split(',')[1][:5]}.* none gives the time of a row; call one `onset`".replace("(", r"\(")
    ):
        read(tmp_path, text)


@pytest.mark.parametrize("title", ["Sleep Stage", "stage", "Hypnogram"])
def test_a_column_of_nothing_but_stages_is_a_list(tmp_path, title):
    scoring = read(tmp_path, "\n".join([title, *(REMLOGIC[stage][0] for stage in STAGES), ""]))
    assert stage_labels(scoring, 36).tolist() == STAGES and scoring.whole_night


@pytest.mark.parametrize("titles", ["Epoch,Stage", "Epoch,Confidence,Stage", "index,Score,hypno", ",stage"])
def test_numbered_epochs_are_read_whatever_else_the_table_holds(tmp_path, titles):
    width = titles.count(",") - 1
    rows = [f"{n}{',0.5' * width},{REMLOGIC[stage][0]}" for n, stage in enumerate(STAGES)]
    assert stage_labels(read(tmp_path, "\n".join([titles, *rows, ""])), 36).tolist() == STAGES
    with pytest.raises(AnnotationError, match="epoch 7 occurs twice"):
        read(tmp_path, "\n".join([titles, *rows[:8], rows[7], *rows[8:], ""]))


def test_times_decide_where_there_are_epochs_too(tmp_path):
    """The first epoch of a table need not be the recording's."""
    rows = [f"{n + 1},{clock(30 * (BEGIN + n))},{REMLOGIC[stage][0]}" for n, stage in enumerate(STAGES)]
    scoring = read(tmp_path, "\n".join(["Epoch,Time,Stage", *rows, ""]))
    assert stage_labels(scoring, 40).tolist() == [-1] * BEGIN + STAGES


def test_onsets_that_are_numbers_of_epochs_are_refused(tmp_path):
    rows = [f"{n},{REMLOGIC[stage][0]}" for n, stage in enumerate(STAGES)]
    with pytest.raises(AnnotationError, match="1 s apart; if they are numbers of epochs, call the column `epoch`"):
        read(tmp_path, "\n".join(["time,stage", *rows, ""]))


def timed(title: str, first: float, start: datetime) -> str:
    return "\n".join([f"{title},Stage", *(f"{clock(first + 30 * n, start)},{REMLOGIC[s][0]}" for n, s in enumerate(STAGES)), ""])


MIDNIGHT = datetime(2020, 1, 1)


@pytest.mark.parametrize("title", ["Time", "Time [hh:mm:ss]", "Start Time (HH:MM:SS)", "Elapsed Time", "elapsed_time (hh:mm:ss)"])
def test_times_since_the_recordings_start_are_told_from_times_of_day(tmp_path, title):
    scoring = read(tmp_path, timed(title, 0, MIDNIGHT))
    assert stage_labels(scoring, 40).tolist() == [*STAGES, *[-1] * 4]
    assert bool(scoring.warnings) is ("apsed" not in title)


def test_times_of_a_recording_that_starts_at_midnight_are_both_and_read(tmp_path):
    scoring = read(tmp_path, timed("Time", 0, MIDNIGHT), MIDNIGHT)
    assert stage_labels(scoring, 40).tolist() == [*STAGES, *[-1] * 4] and not scoring.warnings


def test_times_that_may_be_of_day_or_elapsed_are_refused(tmp_path):
    start = datetime(2020, 2, 1, 23, 50)
    with pytest.raises(
        AnnotationError, match=r"from 00:00:00 may be times of day, or times since .*\(23:50:00\); call the column"
    ):
        read(tmp_path, timed("Time", 0, MIDNIGHT), start, 3600.0)
    first = {"Clock Time": 600.0, "Elapsed Time": 0.0}
    for title, onset in first.items():
        assert read(tmp_path, timed(title, 0, MIDNIGHT), start, 3600.0).begin == onset


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(second=31, first=1, rest=0, elapsed=True)
@example(second=600, first=0, rest=40, elapsed=False)
@given(
    second=st.integers(0, 86_399) | st.integers(0, 1_300),
    first=st.integers(0, 40),
    rest=st.integers(0, 40),
    elapsed=st.booleans(),
)
def test_a_time_is_read_as_it_was_meant_or_refused(tmp_path, second, first, rest, elapsed):
    """Whenever a recording starts, and wherever in it a scoring of times without dates begins."""
    start = MIDNIGHT + timedelta(seconds=second)
    duration = 30.0 * (first + len(STAGES) + rest)
    try:
        scoring = read(tmp_path, timed("Time", 30 * first, MIDNIGHT if elapsed else start), start, duration)
    except AnnotationError as error:
        assert "may be times of day" in str(error)
        return
    right = abs(scoring.begin - 30 * first) <= 30
    # Elapsed times that do not begin at 0 are times of day of another night, which its length refuses, or, where the recording
    # began as long after midnight, those of one that begins with it.
    another = not (scoring.begin >= -30 and scoring.end <= duration + 60)
    assert right or (elapsed and first > 1 and (another or abs(second - 30 * first) <= 30))


@pytest.mark.parametrize("duration", ["00:00:30", "0:00:30.0", "30", "30,0"])
def test_a_duration_is_no_time_of_day(tmp_path, duration):
    rows = [f"{clock(30 * n)};{duration};{REMLOGIC[stage][0]}" for n, stage in enumerate(STAGES)]
    scoring = read(tmp_path, "\n".join(["Start Time;Duration;Event", *rows, ""]))
    assert stage_labels(scoring, 36).tolist() == STAGES and {interval.duration for interval in scoring.stages} == {30.0}


def test_a_table_in_hours(tmp_path):
    rows = [f"{n / 120:.6f},{REMLOGIC[stage][0]}" for n, stage in enumerate(STAGES)]
    assert stage_labels(read(tmp_path, "\n".join(["onset (h),stage", *rows, ""])), 36).tolist() == STAGES


def test_events_of_bids_lie_beside_their_recording(tmp_path):
    folder = tmp_path / "sub-01" / "ses-2" / "eeg"
    folder.mkdir(parents=True)
    path = write_edf(folder / "sub-01_ses-2_task-sleep_eeg.edf", [Made("C3-M2", noise(360 * 100), 100)])
    rows = [f"{30 * n}\t30\t{name}" for n, name in enumerate(("W", "N1", "N2", "N3", "R"))]
    scoring = folder / "sub-01_ses-2_task-sleep_events.tsv"
    scoring.write_text("\n".join(["onset\tduration\ttrial_type", *rows, "65\t12\thypopnea", ""]))
    (folder / "sub-01_ses-2_task-rest_events.tsv").write_text("onset\tduration\ttrial_type\n0\t30\tW\n")
    assert find_scoring(path, tmp_path, load_cohort("generic")) == scoring
    night = prepare(path, root=tmp_path)
    assert night.stage.tolist() == [0, 1, 2, 3, 4, *[-1] * 7] and np.flatnonzero(night.labels["hypopnea"] == 1).tolist() == [2]


def test_sessions_of_bids_are_one_person(tmp_path):
    cohort = load_cohort("generic")
    names = ("sub-01_ses-1_task-sleep_eeg.edf", "sub-01_ses-B_eeg.edf", "sub-01_task-sleep_run-2_eeg.edf", "sub-02_ses-1_eeg.edf")
    first, again, run, other = (identify(tmp_path / name, cohort) for name in names)
    assert first.subject == again.subject == run.subject == "sub-01" != other.subject
    assert (first.visit, again.visit, run.visit) == ("1", "B", "1") and len({first.record, again.record, run.record}) == 3
    # Any other name is a person of its own, as before.
    assert identify(tmp_path / "P01_night1.edf", cohort).subject == "P01_night1"


@pytest.mark.parametrize("title", ["", "Stage\n"])
@pytest.mark.parametrize("blank", ["", '""', " "])
def test_a_blank_line_among_the_stages_of_a_list_is_an_epoch_without_a_stage(tmp_path, title, blank):
    names = ["W", "N1", "N2", "N3", "R"] * 8
    for place in (12, 13, 30):
        names[place] = blank
    found = read(tmp_path, "\n\n" * (not title) + title + "\n".join([*names, "", "", ""]))
    assert stage_labels(found, 40).tolist() == [-1 if n in (12, 13, 30) else n % 5 for n in range(40)]
    assert found.warnings == ("3 blank lines among the stages are epochs that are not scored",)


def test_lines_with_as_many_blank_ones_between_all_of_them_are_epoch_after_epoch(tmp_path):
    found = read(tmp_path, "\n\n".join(["W", "N1", "N2", "N3", "R"] * 8))
    assert stage_labels(found, 40).tolist() == [n % 5 for n in range(40)] and not found.warnings


def test_a_comment_among_the_stages_of_a_list_is_refused_and_one_before_or_after_is_not(tmp_path):
    names = ["W", "N1", "N2", "N3", "R"] * 8
    assert stage_labels(read(tmp_path, "\n".join(["# ours", *names, "# end"])), 40).tolist() == [n % 5 for n in range(40)]
    with pytest.raises(AnnotationError, match="line 13: '# lost' stands among the stages"):
        read(tmp_path, "\n".join([*names[:12], "# lost", *names[12:]]))


def test_stages_without_durations_that_are_runs_are_refused(tmp_path):
    """Each lasts until the next one or for an epoch; nothing says which."""
    runs = [(0, "W"), (90, "N1"), (120, "N2"), (600, "N3"), (900, "R")]
    with pytest.raises(
        AnnotationError, match=r"no durations, and 3 of 4 are followed by the next after more than 30 s \(up to 480 s\)"
    ):
        read(tmp_path, "onset,event\n" + "".join(f"{onset},{name}\n" for onset, name in runs))
    short = [(0, "W"), (30, "N1"), (60, "N2"), (600, "N3"), (630, "R")]
    with pytest.raises(AnnotationError, match="1 of 4 are followed"):
        read(tmp_path, "onset,event\n" + "".join(f"{onset},{name}\n" for onset, name in short))
    # Epochs, of which some were lost, tell.
    found = read(tmp_path, "onset,event\n" + "".join(f"{30 * n},N2\n" for n in range(40) if n not in (5, 6, 20)))
    assert np.flatnonzero(stage_labels(found, 40) == -1).tolist() == [5, 6, 20]
    assert found.warnings == ("2 stages without durations are followed by none for more than 30 s; not scored there",)
