"""Written scorings: every format says the same when its own reader reads it, whatever the night."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, datetime, time, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import edfio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.constants import EVENT_TYPES
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.signals.scorings.vocabulary import NOT_ASSESSED, event_of
from sleepfm.signals.scorings.writers.edf_plus import edf_annotations
from sleepfm.signals.scorings.writers.night import FAMILIES, FAMILY, WrittenNight, scoring_files

STARTS = st.datetimes(datetime(1985, 1, 1), datetime(2083, 12, 31)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
)

# Each event in the words of EDF+ readers and of Luna (zzz.bwh.harvard.edu/luna/nsrr).
WORDS = {
    "obstructive_apnea": ("Obstructive apnea", "apnea_obstructive"),
    "central_apnea": ("Central apnea", "apnea_central"),
    "mixed_apnea": ("Mixed apnea", "apnea_mixed"),
    "apnea": ("Apnea", "apnea"),
    "hypopnea": ("Hypopnea", "hypopnea"),
    "desaturation": ("Oxygen desaturation", "desat"),
    "arousal": ("EEG arousal", "arousal"),
}
# Onset, duration and name of the stages of `told_night`.
STAGES = ((0.0, 30.0, "?"), (30.0, 30.0, "W"), (60.0, 30.0, "N1"), (90.0, 60.0, "N2"), (150.0, 30.0, "N3"), (180.0, 30.0, "R"))


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


def test_what_was_not_assessed_is_a_span_for_each_run_and_counts_as_no_event(tmp_path):
    """Not an annotation an epoch, and of no type or name by which a program counts events."""
    n, looked = 240, np.arange(240) >= 40
    events = (Event(3000.0, 15.0, "hypopnea"),)
    night = WrittenNight(np.full(n, 2, np.int8), events, {"breathing": looked, "desaturation": looked})
    files = {name: content.decode() for name, content in scoring_files(night).items()}
    for name, text in files.items():
        counts = [text.count(said) for said in NOT_ASSESSED.values()]
        assert counts == ([2, 2, 2] if name == "scoring-nsrr.xml" else [1, 1, 1]), name
        assert not re.search("unsure", text, re.IGNORECASE), name
        assert all(event_of(said) is None for said in NOT_ASSESSED.values())
    kinds = re.findall(r"<EventType>(.*)</EventType>\n<EventConcept>(.*)</EventConcept>", files["scoring-nsrr.xml"])
    assert [concept for kind, concept in kinds if kind.startswith(("Arousals", "Respiratory"))] == ["Hypopnea|Hypopnea"]
    assert {concept.split("|")[0] for kind, concept in kinds if kind == "Not assessed|Not assessed"} == set(NOT_ASSESSED.values())
    for name, scoring in read_back(night, tmp_path).items():
        assert scoring.events == events and scoring.warnings == (), name
        for label, types in LABEL_EVENTS.items():
            labels = event_labels(scoring, n, types)
            assert ((labels == -1) == (~looked if label != "arousal" else np.ones(n, bool))).all(), (name, label)
        counts = TextCounts()
        counts.add(name, {"scoring": {"unclear": Counter(event.type for event in scoring.unclear)}})
        assert len(counts.not_understood()) == 1 and counts.not_understood()[0].startswith("states that nobody looked for")


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
    # Another reader goes on behind the first record, and takes the quarter of a second off in each.
    read = edfio.read_edf(tmp_path / "scoring.edf").annotations
    hypopneas = [item for item in read if item.text == "Hypopnea"]
    assert len(read) == len(stages) + len(events)
    assert [(item.onset, item.duration) for item in hypopneas] == [(event.onset, event.duration) for event in events]


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


def told_night(start):
    """Every stage, and every event at milliseconds; breathing was not assessed in the last epoch, arousals in the one before."""
    assert set(WORDS) == set(EVENT_TYPES)
    stages = np.array([-1, 0, 1, 2, 2, 3, 4], np.int8)
    events = tuple(Event(35.487 + 10.125 * number, 12.014 + number, kind) for number, kind in enumerate(EVENT_TYPES))
    assessed = {"breathing": np.arange(7) != 6, "arousal": np.arange(7) != 5, "desaturation": np.ones(7, bool)}
    return WrittenNight(stages, events, assessed, start, "22:10:05")


def told_rows(night, stage, place):
    """Onset, duration and text of all that ``told_night`` says, sorted; ``place`` is that of the format in WORDS."""
    rows = [(onset, lasts, stage + name) for onset, lasts, name in STAGES]
    rows += [(event.onset, event.duration, WORDS[event.type][place]) for event in night.events]
    return sorted([*rows, (150.0, 30.0, "No arousals assessed"), (180.0, 30.0, "No breathing events assessed")])


@pytest.mark.parametrize("start", [datetime(2020, 2, 29, 23, 0, 1, 250_000), None])
def test_edfio_reads_the_annotations(tmp_path, start):
    night = told_night(start)
    (tmp_path / "scoring.edf").write_bytes(scoring_files(night)["scoring.edf"])
    edf = edfio.read_edf(tmp_path / "scoring.edf")
    assert edf.num_signals == 0 and edf.reserved == "EDF+C"
    if start is None:
        # The time of day alone is known.
        assert edf.starttime == time(22, 10, 5)
        with pytest.raises(edfio.AnonymizedDateError):
            _ = edf.startdate
    else:
        assert (edf.startdate, edf.starttime) == (date(2020, 2, 29), start.time())
    found = sorted((round(item.onset, 6), item.duration, item.text) for item in edf.annotations)
    want = told_rows(night, "Sleep stage ", 0)
    assert [text for *_, text in found] == [text for *_, text in want]
    assert np.allclose([times for *times, _ in found], [times for *times, _ in want], atol=1e-6)


def read_annot(text):
    """Class, start and stop of each row, by Luna's documentation alone (zzz.bwh.harvard.edu/luna/ref/annotations)."""
    preamble, *lines = text.split("\n")
    assert lines.pop() == "", "the last line ends"
    # The line of titles must be this one; a line that began with # would define a class.
    assert preamble == "class\tinstance\tchannel\tstart\tstop\tmeta"
    rows = []
    for line in lines:
        # Six columns, of which those that are not used have a full stop.
        name, instance, channel, start, stop, meta = line.split("\t")
        assert name.strip() == name and name not in ("", ".") and not set("#|") & set(name)
        assert (instance, channel, meta) == (".", ".", ".")
        # A plain number is in seconds from the start of the EDF; with a colon it would be a clock time, with a plus or e another
        # thing. What lies behind the fourth digit is rounded away.
        assert all(re.fullmatch(r"\d+(\.\d{1,4})?", time) for time in (start, stop)), line
        # The stop is the first instant behind the interval.
        assert float(start) < float(stop)
        rows.append((name, float(start), float(stop)))
    return rows


def test_luna_annot_is_as_luna_documents_it():
    night = told_night(datetime(2020, 2, 29, 23, 0, 1, 250_000))
    content = scoring_files(night)["scoring.annot"]
    assert content == scoring_files(told_night(None))["scoring.annot"], "elapsed seconds know no clock"
    rows = read_annot(content.decode("ascii"))
    assert [start for _, start, _ in rows] == sorted(start for _, start, _ in rows)
    found, want = sorted((start, stop - start, name) for name, start, stop in rows), told_rows(night, "", 1)
    assert [text for *_, text in found] == [text for *_, text in want]
    assert np.allclose([times for *times, _ in found], [times for *times, _ in want], atol=1e-6)


def of_luna(text, name):
    """What Luna makes of a text of ``scoring.annot`` where it stands in the file ``name``."""
    kind = {
        "apnea_obstructive": "Obstructive_Apnea",
        "apnea_central": "Central_Apnea",
        "apnea_mixed": "Mixed_Apnea",
        "apnea": "Apnea",
        "hypopnea": "Hypopnea",
        "desat": "SpO2_desaturation",
        "arousal": "Arousal",
    }
    # It puts an underscore for a blank.
    return (text if name == "scoring.annot" else kind.get(text, text)).replace(" ", "_")


@pytest.mark.parametrize("name", ["scoring.annot", "scoring-nsrr.xml", "scoring-profusion.xml"])
def test_luna_itself_reads_them(tmp_path, name):
    lunapi = pytest.importorskip("lunapi")
    night = told_night(None)
    (tmp_path / name).write_bytes(scoring_files(night)[name])
    recording = lunapi.proj().empty_inst("night", 210, 1, "01.01.85", "22.10.05")
    recording.attach_annot(str(tmp_path / name))
    table = recording.fetch_annots(list(recording.annots()["Annotations"]))
    # Of NSRR's "Obstructive apnea|Obstructive Apnea" the second half is the name.
    names = [text.rpartition("|")[2] for text in table["Class"]]
    found = seconds_of(zip(table["Start"], table["Stop"] - table["Start"], names, strict=True))
    want = seconds_of((onset, lasts, of_luna(text, name)) for onset, lasts, text in told_rows(night, "", 1))
    unscored = {"?", "U"}
    assert [text for *_, text in found if text not in unscored] == [text for *_, text in want if text not in unscored]
    assert np.allclose([times for *times, _ in found], [times for *times, _ in want], atol=1e-3)


def seconds_of(rows):
    """Rows (onset, duration, text) by time, in which a stage of several epochs is as many rows, as Profusion writes it."""
    found = []
    for onset, lasts, text in rows:
        epochs = round(lasts / 30) if text in ("?", "U", "W", "N1", "N2", "N3", "R") else 1
        found += [(onset + lasts * part / epochs, lasts / epochs, text) for part in range(epochs)]
    return sorted(found)


def test_texts_that_xml_must_escape_are_written_whole(tmp_path):
    rows = [Event(0.0, 30.0, "Sleep stage W"), Event(3.0, 0.0, "<Tür & Licht>")]
    (tmp_path / "a.edf").write_bytes(edf_annotations(rows, None, "22.00.00"))
    assert read_scoring(tmp_path / "a.edf").ignored == {"<Tür & Licht>": 1}
