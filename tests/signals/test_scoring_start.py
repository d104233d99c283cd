"""A scoring that says when its recording started, and another time than the recording does, may be of another night."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from made_edf import Made, noise, write_edf

from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.examine import examine
from sleepfm.signals.prepare import prepare
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.clock import seconds_apart, time_of_day
from sleepfm.signals.scorings.writers.night import FAMILIES, WrittenNight, scoring_files

EPOCHS = 10
STAGES = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4, 4], np.int8)


def night_and_scoring(folder, name, shift):
    """A recording, and the scoring ``name`` of one that started ``shift`` s after it."""
    recording = write_edf(folder / "night.edf", [Made("C4-M1", noise(EPOCHS * 3000), 100)], start=("02.01.20", "23.00.00"))
    start = read_recording(recording).start
    night = WrittenNight(STAGES, (), dict.fromkeys(FAMILIES, np.ones(EPOCHS, bool)), start + timedelta(seconds=shift))
    (folder / name).write_bytes(scoring_files(night)[name])
    return recording, folder / name


@pytest.mark.parametrize(("shift", "told"), [(7200, "120.0 min after"), (-7200, "120.0 min before"), (31, "0.5 min after")])
def test_another_start_in_nsrr_xml_is_told_wherever_a_night_is_scored(tmp_path, shift, told):
    recording, scoring = night_and_scoring(tmp_path, "scoring-nsrr.xml", shift)
    found = examine(recording, load_cohort("generic"), scoring=scoring)
    assert found.scoring.misplaced == found.scoring.warnings and len(found.scoring.misplaced) == 1
    assert f"its recording started {told} this one did" in found.scoring.misplaced[0]
    night = prepare(recording, load_cohort("generic"), scoring=scoring)
    # It is told and not refused, and nothing is moved.
    assert np.array_equal(night.stage, STAGES)
    assert told in night.provenance["scoring"]["misplaced"][0] and told in night.provenance["scoring"]["warnings"][0]


@pytest.mark.parametrize("shift", [0, 30, -30])
@pytest.mark.parametrize("name", ["scoring-nsrr.xml", "scoring-profusion.xml", "scoring.annot"])
def test_the_same_start_or_none_is_no_reason_for_doubt(tmp_path, name, shift):
    recording, scoring = night_and_scoring(tmp_path, name, shift)
    found = examine(recording, load_cohort("generic"), scoring=scoring)
    assert found.scoring.misplaced == () and found.scoring.warnings == ()
    assert "misplaced" not in prepare(recording, load_cohort("generic"), scoring=scoring).provenance["scoring"]


def test_annotations_and_clock_times_that_start_elsewhere_are_told(tmp_path):
    """Their times are moved, so that what is left of them may look like a scoring of this night."""
    recording, scoring = night_and_scoring(tmp_path, "scoring.edf", -120)
    found = examine(recording, load_cohort("generic"), scoring=scoring).scoring
    assert found.misplaced[0].startswith("its file starts 2.0 min before the recording") and len(found.misplaced) == 2
    table = tmp_path / "night.csv"
    rows = [f"{datetime(2020, 1, 2, 22, 58) + timedelta(seconds=30 * n):%H:%M:%S},N2" for n in range(12)]
    table.write_text("\n".join(["clock time,stage", *rows]) + "\n")
    found = examine(recording, load_cohort("generic"), scoring=table).scoring
    assert [text.split(" before")[0] for text in found.misplaced] == ["scoring begins 120.0 s"]


def test_times_of_day_are_compared_across_midnight():
    start = datetime(2020, 1, 2, 23, 50)
    assert seconds_apart(600.0, start) == 1200.0 and seconds_apart(23.5 * 3600, start) == -1200.0
    assert time_of_day("02.01.20 23.50.00") == 85_800.0 and time_of_day("11:50:00") == 42_600.0
    # No time, none that is one, and what stands where nobody knows it.
    assert {time_of_day(text) for text in ("", "unknown", "01.01.85 25.61.00", "00.00.00 00.00.00")} == {None}
