"""What may be an event and does not say enough of itself is never free of events."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from made_edf import Made, noise, tal, write_edf

from sleepfm.config import load_config
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.examine import examine
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.vocabulary import event_of, is_beside_the_point, is_respiratory

EPOCHS = 20
OWN = {"zwo": "obstructive_apnea", "ZA": "central_apnea", "Flachatmung": "hypopnea", "wach auf": "arousal", "sat": "desaturation"}
KNOWN = {
    "obstructive_apnea": "Obstructive apnea",
    "central_apnea": "Central apnea",
    "hypopnea": "Hypopnea",
    "arousal": "Arousal",
    "desaturation": "Desaturation",
}
TITLES = "onset,duration,description"


def scored(folder: Path, rows: list[str], own: dict[str, str] | None = None, titles: str = TITLES) -> Scoring:
    """Scoring of a night of ten minutes of N2 by a table with ``rows`` below its stages."""
    lab = folder / "lab.yaml"
    said = "".join(f"    {text!r}: {kind}\n" for text, kind in (own or {}).items())
    lab.write_text(
        "extends: generic.yaml\nname: lab\nsource: test\nscoring:\n  events:\n" + said if said else "extends: generic.yaml\n"
    )
    lasting = ",30" if "duration" in titles else ""
    stages = [f"{30 * n}{lasting},Sleep stage N2" for n in range(EPOCHS)]
    (folder / "night.csv").write_text("\n".join([titles, *stages, *rows, ""]))
    night = write_edf(folder / "night.edf", [Made("C4-M1", noise(100 * 30 * EPOCHS), 100)])
    found = examine(night, load_config(Cohort, lab), use="require").scoring
    assert found is not None
    return found


def labels(scoring: Scoring) -> dict[str, list[int]]:
    return {name: event_labels(scoring, EPOCHS, types).tolist() for name, types in LABEL_EVENTS.items()}


def unknown(scoring: Scoring, name: str) -> list[int]:
    return np.flatnonzero(np.array(labels(scoring)[name]) == -1).tolist()


@pytest.mark.parametrize(
    "row", ["305,,{}", "305,-,{}", "305,n/a,{}", "305,0,{}", "305,long,{}", "305,-10,{}", "?,15,{}", "305,inf,{}"]
)
@pytest.mark.parametrize(("word", "kind"), OWN.items())
def test_an_own_word_is_treated_as_a_known_word_in_the_same_state(tmp_path, row, word, kind):
    other = "500,20,Hypopnea"
    own = scored(tmp_path, [row.format(word), other], OWN)
    known = scored(tmp_path, [row.format(KNOWN[kind]), other])
    assert labels(own) == labels(known)
    assert [text.replace(word, KNOWN[kind]) for text in own.warnings] == list(known.warnings)
    # Neither vanishes.
    name = next(name for name, types in LABEL_EVENTS.items() if kind in types)
    assert unknown(own, name) and own.warnings and word not in own.ignored


def test_own_words_in_every_format_with_texts(tmp_path):
    own = load_own(tmp_path)
    event = "<ScoredEvent><Name>{0}</Name><EventType>{1}</EventType><EventConcept>{0}</EventConcept><Start>{2}</Start>"
    event += "<Duration>{3}</Duration></ScoredEvent>"
    stages = "<SleepStage>2</SleepStage>" * EPOCHS
    texts = {
        "nsrr.xml": "<PSGAnnotation><ScoredEvents>"
        + event.format("Stage 2 sleep|2", "Stages|Stages", 0, 600)
        + event.format("ZA|ZA", "Respiratory|Respiratory", 305, "")
        + "</ScoredEvents></PSGAnnotation>",
        "profusion.xml": f"<CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents>{event.format('ZA', '', 305, '')}"
        f"</ScoredEvents><SleepStages>{stages}</SleepStages></CMPStudyConfig>",
        "x.annot": "N2\t.\t0\t600\nZA\t.\t305\t.\n",
        "y.annot": "N2\t.\t0\t600\nresp\tZA\t305\t.\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        night = write_edf(tmp_path / "night.edf", [Made("C4-M1", noise(100 * 30 * EPOCHS), 100)])
        found = examine(night, own, scoring=tmp_path / name, use="require").scoring
        assert found is not None and unknown(found, "hypopnea") == [10, 11, 12], name
        assert set(unknown(found, "apnea")) >= {11, 12} and labels(found)["apnea"][10] != 0, name
    stamps = [tal("+0") + tal("+0", "600", "Sleep stage N2") + tal("+305", "", "ZA")] + [tal(f"+{n}") for n in range(1, 600)]
    inside = write_edf(tmp_path / "in.edf", [Made("C4-M1", noise(100 * 600), 100)], variant="EDF+C", stamps=stamps)
    found = examine(inside, own, use="require").scoring
    assert found is not None and labels(found)["apnea"][10:13] == [1, -1, -1]


def load_own(folder: Path) -> Cohort:
    path = folder / "own.yaml"
    path.write_text("extends: generic.yaml\nname: lab\nsource: test\nscoring: {events: {ZA: central_apnea}}\n")
    return load_config(Cohort, path)


def test_an_own_word_comes_before_what_is_known(tmp_path):
    rows = ["100,20,Hypopnea", "200,20,Central apnea", "300,20,Obstructive apnea", "400,20,MT"]
    found = scored(
        tmp_path, rows, {"hypopnea": "unclear", "central apnea": "unclear", "Obstructive apnea": "hypopnea", "MT": "arousal"}
    )
    assert [(event.onset, event.type) for event in found.events] == [(300, "hypopnea"), (400, "arousal")]
    assert unknown(found, "apnea") == unknown(found, "hypopnea") == [3, 6, 7]


@pytest.mark.parametrize("missing", ["", "-", "n/a", "0"])
def test_an_event_without_a_duration_leaves_the_minute_after_its_onset_open(tmp_path, missing):
    found = scored(tmp_path, [f"328,{missing},Hypopnea", f"508,{missing},Arousal", "60,20,Central apnea"])
    assert np.flatnonzero(np.array(labels(found)["hypopnea"]) == 1).tolist() == [10]
    assert unknown(found, "hypopnea") == [11, 12] and unknown(found, "apnea") == [10, 11, 12]
    assert unknown(found, "arousal") == [17, 18] and labels(found)["arousal"][16] == 1 and not unknown(found, "desaturation")
    (told,) = found.warnings
    assert told.startswith("2 events without a duration") and "'Hypopnea' at 328 s" in told


def test_of_many_events_without_a_duration_the_first_are_named_and_the_others_counted(tmp_path):
    (told,) = scored(tmp_path, [f"{30 * number},,Hypopnea" for number in range(5)]).warnings
    assert told.startswith("5 events") and told.endswith("'Hypopnea' at 60 s and 2 more")


RESPIRATORY = """Central|Mixed|zentral|gemischt|Hypo|OA/arousal|Obst Hyp|Ob Hyp|Central A|Obs A|A. obstr.|Mixed A|OHyp|CHyp|
Obst. A.|C. Apn|Atemaussetzer|Atemereignis|SDB event|SAHOS|Bezdech|Апноэ|呼吸暂停|
Flow reduction|Absent flow|airflow reduction 50%|No airflow|
Reduced airflow|Central (supine)|OA left|Spłycenie oddechu|Obstructive, supine position"""
NOT_UNDERSTOOD = "H|A|AP|HA|HY|Xyz|Uspanie|Entsättigung|Risveglio|ZA"


@pytest.mark.parametrize("text", [text.strip() for text in RESPIRATORY.split("|")])
def test_a_text_on_breathing_is_never_a_negative(tmp_path, text):
    assert event_of(text) is None and is_respiratory(text) and not is_beside_the_point(text)
    found = scored(tmp_path, [f'305,20,"{text}"', "500,20,Obstructive apnea"])
    assert unknown(found, "apnea") == unknown(found, "hypopnea") == [10]
    assert unknown(found, "arousal") == ([10] if "arousal" in text else [])


@pytest.mark.parametrize("text", NOT_UNDERSTOOD.split("|"))
def test_a_text_that_is_not_understood_and_lasts_as_events_do_is_never_a_negative(tmp_path, text):
    assert event_of(text) is None and not is_beside_the_point(text)
    found = scored(tmp_path, [f"305,20,{text}", "500,20,Obstructive apnea", f"400,2,{text}", f"400,301,{text}", f"60,,{text}"])
    for name in LABEL_EVENTS:
        assert unknown(found, name) == [10], name
    assert found.ignored == {text: 3} and [event.type for event in found.unclear] == [text]


def test_where_no_event_has_a_duration_a_text_that_is_not_understood_needs_none(tmp_path):
    found = scored(tmp_path, ["305,Xyz", "400,Obstructive apnea", "60,Lights off"], titles="onset,description")
    assert unknown(found, "arousal") == [10, 11, 12] and unknown(found, "hypopnea") == [10, 11, 12, 13, 14, 15]
    assert found.ignored == {"Lights off": 1}


@pytest.mark.parametrize(
    "text", ["Patient turns, cough", "Leg movement", "SpO2 artifact", "Position - Left", "Snore", "Flow sensor off"]
)
def test_what_is_known_to_be_beside_the_point_costs_nothing(tmp_path, text):
    found = scored(tmp_path, [f'305,20,"{text}"', "500,20,Obstructive apnea"])
    assert not any(unknown(found, name) for name in LABEL_EVENTS) and found.ignored == {text: 1}


def test_a_text_on_desaturation_or_arousal_that_is_not_understood_is_no_negative_of_it(tmp_path):
    found = scored(tmp_path, ["305,20,Desaturazione", "95,20,Desat 4%", "400,10,post-arousal desat?", "500,20,Obstructive apnea"])
    assert unknown(found, "desaturation") == [3, 10, 13] and not unknown(found, "apnea")


def test_a_text_that_is_not_understood_is_no_sign_that_events_were_scored(tmp_path):
    for row in ("305,20,Xyz", "305,,mouth breathing"):
        found = scored(tmp_path, [row])
        assert not found.has_events and all(set(values) == {-1} for values in labels(found).values())


def test_the_recordings_of_noxturnal_lose_nothing(shared_data):
    """Real nights with notes, positions and signals of devices among their events."""
    for name in ("noxturnal_events_example_unicode_2.csv", "noxturnal_events_example_unicode_3.csv"):
        start = datetime(2018, 7, 25, 23, 45, 40) if "_2" in name else datetime(2018, 4, 27, 23, 0, 23)
        found = read_scoring(shared_data / "nox-a1" / name, start)
        assert found.has_events
        doubtful = (event_labels(found, 900, LABEL_EVENTS["apnea"]) == -1).sum()
        assert doubtful == 0, (name, found.unclear[:5])


def test_doubt_reaches_the_labels_of_a_build(tmp_path):
    scored(tmp_path, ["305,20,Xyz", "500,20,Obstructive apnea"])
    night = prepare(tmp_path / "night.edf")
    assert night.labels["hypopnea"].tolist() == [-1 if n == 10 else 0 for n in range(EPOCHS)]
    assert night.provenance["scoring"]["unclear"] == {"Xyz": 1}
