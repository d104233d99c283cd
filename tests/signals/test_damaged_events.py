"""One event whose times cannot be costs that event and the labels that it may touch, in every format; the rest stays."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile

START = datetime(2000, 1, 1, 22, 0, 0)
EPOCHS = 20
HEAD = "onset,duration,description\n" + "".join(f"{30 * n},30,Sleep stage N2\n" for n in range(EPOCHS))


def labels_of(scoring):
    scoring = reconcile(scoring, EPOCHS * 30.0, "error", "x")
    assert stage_labels(scoring, EPOCHS).tolist() == [2] * EPOCHS
    return {name: event_labels(scoring, EPOCHS, types) for name, types in LABEL_EVENTS.items()}


def table(tmp_path, *rows):
    path = tmp_path / "x.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return read_scoring(path, START)


@pytest.mark.parametrize(
    ("row", "open_epochs"),
    [
        ("100,-15,{}", {2, 3}),  # 85 to 115 s
        ("100,inf,{}", {3, 4, 5}),
        ("100,soon,{}", {3, 4, 5}),
        ("100,1e12,{}", {3, 4, 5}),
        ("100,-1e6,{}", {1, 2, 3, 4, 5}),
        ("late,10,{}", set(range(EPOCHS))),  # anywhere
        (",10,{}", set(range(EPOCHS))),
        ("n/a,10,{}", set(range(EPOCHS))),
    ],
)
@pytest.mark.parametrize(
    ("text", "touched"),
    [
        ("Obstructive apnea", {"apnea", "hypopnea"}),
        ("Hypopnea", {"apnea", "hypopnea"}),
        ("Arousal", {"arousal"}),
        ("Oxygen desaturation", {"desaturation"}),
    ],
)
def test_what_a_damaged_row_may_touch_has_no_label(tmp_path, row, open_epochs, text, touched):
    scoring = table(tmp_path, row.format(text), "200,20,Hypopnea", "300,5,Arousal")
    (warning,) = scoring.warnings
    assert warning.startswith("1 event whose times cannot be is left out") and repr(text) in warning
    labels = labels_of(scoring)
    for name, found in labels.items():
        unknown = open_epochs - set(np.flatnonzero(found == 1)) if name in touched else set()
        assert set(np.flatnonzero(found == -1)) == unknown, name
    assert np.flatnonzero(labels["hypopnea"] == 1).tolist() == [6, 7] and labels["arousal"][10] == 1


def test_an_epoch_that_holds_an_event_for_certain_keeps_it(tmp_path):
    labels = labels_of(table(tmp_path, "100,-15,Hypopnea", "95,20,Hypopnea"))
    assert labels["hypopnea"][[2, 3]].tolist() == [-1, 1]


def test_a_note_without_a_time_costs_nothing(tmp_path):
    scoring = table(tmp_path, "100,-15,Technician Notes", "200,20,Hypopnea", ",,Total 2")
    assert not scoring.warnings and scoring.ignored == {"Technician Notes": 1}
    assert all((found >= 0).all() for found in labels_of(scoring).values())


@pytest.mark.parametrize("name", ["nsrr", "profusion", "annot"])
def test_every_format_with_times_of_events(tmp_path, name):
    text = {
        "nsrr": "<PSGAnnotation><ScoredEvents>"
        "<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Stage 2 sleep|2</EventConcept><Start>0</Start>"
        "<Duration>600</Duration></ScoredEvent>"
        "<ScoredEvent><EventType>Respiratory|Respiratory</EventType><EventConcept>Hypopnea|Hypopnea</EventConcept>"
        "<Start>100</Start><Duration>-15</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>",
        "profusion": "<CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents><ScoredEvent><Name>Hypopnea</Name>"
        "<Start>100</Start><Duration>-15</Duration></ScoredEvent></ScoredEvents><SleepStages>"
        + "<SleepStage>2</SleepStage>" * EPOCHS
        + "</SleepStages></CMPStudyConfig>",
        "annot": "N2\t.\t0\t600\nHypopnea\t.\t100\t85\n",
    }[name]
    path = tmp_path / "x.txt"
    path.write_text(text)
    scoring = read_scoring(path, START)
    assert "'Hypopnea' at 100 s for -15 s" in " ".join(scoring.warnings)
    assert np.flatnonzero(labels_of(scoring)["hypopnea"] == -1).tolist() == [2, 3]


LOG = "22:00:00.00\tSTAGE - N2\n{}\n22:09:59.99\tSTAGE - N2\n22:10:00.00\tLIGHTS ON\n"


@pytest.mark.parametrize("time", ["2x:03:00.00", "--", "25:99:00.00"])
def test_a_line_of_a_log_whose_time_cannot_be_read_is_not_passed_over(tmp_path, time):
    path = tmp_path / "x.allscore.txt"
    path.write_text(LOG.format(f"{time}\tRESPIRATORY EVENT - DUR: 20.0 SEC. - HYPOPNEA - DESAT 91.6 %"))
    scoring = read_scoring(path, START, EPOCHS * 30.0)
    assert "'HYPOPNEA' at a time that cannot be read" in " ".join(scoring.warnings)
    labels = labels_of(scoring)
    assert (labels["hypopnea"] == -1).all() and (labels["apnea"] == -1).all() and (labels["arousal"] == 0).all()
    path.write_text(LOG.format(f"{time}\tSTAGE - R"))
    with pytest.raises(AnnotationError, match=r"line 2: .* is a stage whose time cannot be read"):
        read_scoring(path, START, EPOCHS * 30.0)
    path.write_text(LOG.format("who called the technician twice"))
    assert not read_scoring(path, START, EPOCHS * 30.0).warnings


def test_a_stage_without_an_onset_costs_the_scoring(tmp_path):
    with pytest.raises(AnnotationError, match="'Sleep stage R'"):
        table(tmp_path, ",30,Sleep stage R")
