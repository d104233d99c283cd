"""Written scorings: every format says the same when its own reader reads it, whatever the night."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.constants import EVENT_TYPES
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.edf_plus import edf_annotations
from sleepfm.signals.scorings.writers.night import FAMILIES, FAMILY, WrittenNight, scoring_files

STARTS = st.datetimes(datetime(1985, 1, 1), datetime(2083, 12, 31)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
)


@st.composite
def nights(draw):
    n_epochs = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    stages = rng.integers(-1, 5, n_epochs).astype(np.int8)
    if draw(st.booleans()):
        stages = np.repeat(stages, 3)[:n_epochs]
    seconds = n_epochs * 30
    events = {
        Event(round(float(rng.uniform(0, seconds)), 3), round(float(rng.uniform(0.5, 120)), 3), str(kind))
        for kind in rng.choice(EVENT_TYPES, draw(st.integers(0, 25)))
    }
    assessed = {family: rng.random(n_epochs) < draw(st.sampled_from((0.8, 1.0))) for family in FAMILIES if draw(st.booleans())}
    start = draw(st.none() | STARTS)
    return WrittenNight(stages, tuple(sorted(events, key=lambda e: (e.onset, e.type))), assessed, start, "22:10:05")


def read_back(night, folder):
    found = {}
    for name, content in scoring_files(night).items():
        path = Path(folder) / name
        path.write_bytes(content)
        found[name] = read_scoring(path, night.start, len(night.stages) * 30.0)
    return found


@settings(max_examples=60, deadline=None)
@given(nights())
def test_random_scorings_are_read_back_from_every_format(night):
    n = len(night.stages)
    with TemporaryDirectory() as folder:
        found = read_back(night, folder)
    assert len(found) == 4
    for name, scoring in found.items():
        assert np.array_equal(stage_labels(scoring, n), night.stages), name
        assert [event.type for event in scoring.events] == [event.type for event in night.events], name
        times = np.array([(event.onset, event.duration) for event in scoring.events])
        assert np.allclose(times, [(e.onset, e.duration) for e in night.events], atol=2e-3) if night.events else not len(times)
        assert scoring.warnings == () and all(text.startswith(("No ", "Recording Start Time")) for text in scoring.ignored), name


@settings(max_examples=40, deadline=None)
@given(nights())
def test_what_was_not_assessed_is_read_as_unknown_and_never_as_none(night):
    n = len(night.stages)
    with TemporaryDirectory() as folder:
        found = read_back(night, folder)
    for name, scoring in found.items():
        for label, types in LABEL_EVENTS.items():
            labels = event_labels(scoring, n, types)
            family = FAMILY[types[0]]
            looked = night.assessed.get(family, np.zeros(n, bool))
            assert not (labels[~looked] == 0).any(), (name, label)
            if night.events and family == "breathing" and looked.all():
                assert (labels >= 0).all(), (name, label)


def test_a_long_fragmented_night_takes_several_records(tmp_path):
    stages = np.tile(np.array([0, 1, 2, 3, 4, -1], np.int8), 480)
    events = tuple(Event(float(second), 12.0, "hypopnea") for second in range(5, 86_000, 40))
    start = datetime(2024, 2, 29, 22, 30) + timedelta(milliseconds=250)
    night = WrittenNight(stages, events, dict.fromkeys(FAMILIES, np.ones(len(stages), bool)), start)
    found = read_back(night, tmp_path)
    for scoring in found.values():
        assert np.array_equal(stage_labels(scoring, len(stages)), stages) and scoring.events == events
    header = (tmp_path / "scoring.edf").read_bytes()[:512]
    assert int(header[236:244]) > 1 and 2 * int(header[472:480]) <= 61_440
    assert header[88:113] == b"Startdate 29-FEB-2024 X X"


def test_mne_reads_the_annotations(tmp_path):
    mne = pytest.importorskip("mne")
    stages = np.array([-1, 0, 1, 2, 2, 3, 4], np.int8)
    events = (Event(35.5, 12.0, "obstructive_apnea"), Event(60.0, 20.0, "hypopnea"))
    night = WrittenNight(stages, events, dict.fromkeys(FAMILIES, np.ones(7, bool)), datetime(2020, 1, 2, 23, 0, 1))
    (tmp_path / "scoring.edf").write_bytes(scoring_files(night)["scoring.edf"])
    found = mne.read_annotations(tmp_path / "scoring.edf")
    rows = {
        (float(onset), float(lasts), str(text))
        for onset, lasts, text in zip(found.onset, found.duration, found.description, strict=True)
    }
    assert (35.5, 12.0, "Obstructive apnea") in rows and (60.0, 20.0, "Hypopnea") in rows
    assert (90.0, 60.0, "Sleep stage N2") in rows and (0.0, 30.0, "Sleep stage ?") in rows and len(rows) == 8


def test_texts_that_xml_must_escape_are_written_whole(tmp_path):
    rows = [Event(0.0, 30.0, "Sleep stage W"), Event(3.0, 0.0, "<Tür & Licht>")]
    (tmp_path / "a.edf").write_bytes(edf_annotations(rows, None, "22.00.00"))
    assert read_scoring(tmp_path / "a.edf").ignored == {"<Tür & Licht>": 1}
