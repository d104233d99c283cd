"""Nights whose scorings are documented to be unusable are read without them, by the lists of the cohorts' files."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf

from sleepfm.signals.prepare import PreparedRecording, prepare

LABELS = {"mros": ["C3-M2", "C4-M1"], "mesa": ["EEG3"], "GSSA": ["C3-M2"], "MAYO": ["C3-M2"]}
XML = (
    "<PSGAnnotation><ScoredEvents><ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Stage 2 sleep|2</EventConcept>"
    "<Start>0</Start><Duration>60</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>"
)
PROFUSION = (
    "<CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents/><SleepStages><SleepStage>2</SleepStage>"
    "<SleepStage>2</SleepStage></SleepStages></CMPStudyConfig>"
)
CSV = "Start Time,Duration (seconds),Event\n22:30:00,30,Stage2\n22:30:30,30,Stage2\n"

# NSRR's documentation, known issues and history (github.com/nsrr/mros-documentation and mesa-documentation,
# pages/polysomnography-introduction.md; stages-documentation, pages/README.md).
EVENTS_LOST = ["0236", "0425", "0461", "1477", "2123", "2339", "2608", "3354", "3386", "4712", "4858", "4860"]
STAGES_WRONG = ["2033", "3905", "4225", "4398", "4928", "5622", "5660", "5781", "2159", "2180", "4156"]


def night(folder: Path, name: str, scoring: str = "{}-nsrr.xml", text: str = XML) -> PreparedRecording:
    write_edf(folder / f"{name}.edf", [Made(label, noise(200 * 60), 200) for label in LABELS[name[:4]]])
    (folder / scoring.format(name)).write_text(text)
    return prepare(folder / f"{name}.edf", root=folder)


def test_events_that_were_lost_are_not_absent(tmp_path):
    for number in EVENTS_LOST:
        found = night(tmp_path, f"mros-visit1-aa{number}")
        assert found.cohort == "mros1" and (found.stage == 2).all(), number
        assert all((labels == -1).all() for labels in found.labels.values()), number


@pytest.mark.parametrize("name", [f"mros-visit1-aa{number}" for number in STAGES_WRONG] + ["mesa-sleep-1738", "mesa-sleep-6476"])
def test_stages_that_are_wrong_are_not_used(tmp_path, name):
    found = night(tmp_path, name)
    assert (found.stage == -1).all() and "known to be wrong" in found.provenance["scoring_refused"] and found.channels


def test_nights_of_a_site_that_is_advised_against_are_not_used(tmp_path):
    assert "known to be wrong" in night(tmp_path, "MAYO00012", "{}.csv", CSV).provenance["scoring_refused"]
    assert (night(tmp_path, "GSSA00012", "{}.csv", CSV).stage == 2).all()


@pytest.mark.parametrize("number", ["1510", "1876", "3545"])
def test_of_an_exchanged_recording_the_new_scoring_alone_is_used(tmp_path, number):
    """Its XML of before may lie beside it where a download was brought up to date."""
    name = f"mros-visit1-aa{number}"
    assert "known to be wrong" in night(tmp_path, name).provenance["scoring_refused"]
    (tmp_path / f"{name}-nsrr.xml").unlink()
    found = night(tmp_path, name, "{}-profusion.xml", PROFUSION)
    assert (found.stage == 2).all() and (found.labels["apnea"] == 0).all()


@pytest.mark.parametrize(
    "name", ["mros-visit1-aa0001", "mros-visit2-aa0236", "mros-visit1-aa02361", "mesa-sleep-17381", "mesa-sleep-0001"]
)
def test_others_are_used(tmp_path, name):
    found = night(tmp_path, name)
    assert (found.stage == 2).all() and (found.labels["apnea"] == 0).all() and not found.provenance["scoring_refused"]
