"""Texts of scorings: what is understood, what makes its epochs unknown, and what refuses a scoring."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_edf import Made, noise, tal, write_edf

from sleepfm.cli import main
from sleepfm.constants import APNEA_TYPES
from sleepfm.errors import ConfigError, StageTextError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.examine import examine
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.vocabulary import event_of, is_beside_the_point, is_respiratory, names_a_stage, stage_of

EPOCHS = 12
STAGES = [0] * 3 + [1, 2, 2, 3, 3] + [4] * 2 + [0] * 2
NAMES = {0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "REM"}


def night(folder, *texts: bytes, scoring: str = "", name: str = ""):
    """A recording of six minutes with EDF+ ``texts``, and a scoring of that name beside it."""
    stamps = [tal("+0") + b"".join(texts)] + [tal(f"+{second}") for second in range(1, EPOCHS * 30)] if texts else None
    signals = [Made(label, noise(100 * EPOCHS * 30, n), 100) for n, label in enumerate(("C3-M2", "C4-M1", "E1-M2"))]
    path = write_edf(folder / "night.edf", signals, variant="EDF+C" if texts else "", stamps=stamps)
    if name:
        (folder / name).write_text(scoring)
    return path


def table(names: dict[int, str], row="{onset},30,{text}", title="onset,duration,description") -> str:
    rows = (
        row.format(onset=30 * n, end=30 * n + 30, clock=f"22:{30 + n // 2}:{n % 2 * 30:02d}", text=names[s])
        for n, s in enumerate(STAGES)
    )
    return "\n".join([title, *rows, ""])


# --- stages ---------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, titles: str, rows: Iterable[str]) -> Path:
    """A table of ``rows`` below its titles."""
    path = folder / "x.csv"
    path.write_text("\n".join([titles, *rows, ""]))
    return path


def test_a_table_of_clock_times_in_which_wake_is_wk(tmp_path):
    """As a laboratory wrote it: a number, a clock time and a stage an epoch, no durations (mne-python's issue 5451)."""
    text = table(NAMES | {0: "WK"}, "9,{clock},{text}", "No.,StartTime,Label")
    prepared = prepare(night(tmp_path, scoring=text, name="night.csv"))
    assert prepared.stage.tolist() == STAGES


@pytest.mark.parametrize("form", ["annot", "csv", "tsv with an epoch column"])
def test_numbers_mean_the_same_in_every_format(tmp_path, form):
    """0 wake and 5 REM, as in lists of numbers; in Luna's walk-through two of twenty people have them as classes."""
    numbers = {0: "0", 1: "1", 2: "2", 3: "4", 4: "5"}
    text = {
        "annot": table(numbers, "{text}\t.\t.\t{onset}\t{end}\t.", "class\tinstance\tchannel\tstart\tstop\tmeta"),
        "csv": table(numbers),
        "tsv with an epoch column": "epoch\tstage\n" + "".join(f"{n}\t{numbers[s]}\n" for n, s in enumerate(STAGES)),
    }[form]
    path = tmp_path / "x.txt"
    path.write_text(text)
    assert stage_labels(read_scoring(path), EPOCHS).tolist() == STAGES


def test_a_cohort_file_of_ones_own_extends_a_shipped_one_from_anywhere(tmp_path):
    rows = "".join(f"{[0, 1, 2, 3, 5][s]}\t.\t.\t{30 * n}\t{30 * n + 30}\t.\n" for n, s in enumerate(STAGES))
    path = night(tmp_path, scoring=f"class\tinstance\tchannel\tstart\tstop\tmeta\n{rows}", name="night.annot")
    own = tmp_path / "own.yaml"
    own.write_text("extends: generic.yaml\nname: own\nsource: test\nscoring: {files: ['{stem}.annot']}\n")
    assert prepare(path, load_cohort(str(own))).stage.tolist() == STAGES
    other = tmp_path / "other.yaml"
    other.write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"other\.yaml: extends 'nowhere\.yaml', which is no file beside it"):
        load_cohort(str(other))


def test_numbers_beside_names(tmp_path):
    """W, 1, 2, 4, R is by Rechtschaffen and Kales: 4 is deep sleep. Beside "Sleep stage 2", 4 is some other mark."""
    path = tmp_path / "x.csv"
    path.write_text(table({0: "W", 1: "1", 2: "2", 3: "4", 4: "R"}))
    assert stage_labels(read_scoring(path), EPOCHS).tolist() == STAGES
    path.write_text(table({s: f"Sleep stage {t}" for s, t in NAMES.items()}) + "65,0,4\n95,0,0\n95,0,255\n")
    scoring = read_scoring(path)
    assert stage_labels(scoring, EPOCHS).tolist() == STAGES and scoring.ignored == {"4": 1, "0": 1, "255": 1}


LOST = [
    ("table", lambda names: table(names)),
    ("no durations", lambda names: table(names, "{onset},{text}", "onset,label")),
    ("clock times", lambda names: table(names, "{clock},{text}", "StartTime,Label")),
    ("stage column", lambda names: table(names, "{onset},{text}", "onset,stage")),
    ("epochs", lambda names: "epoch,stage\n" + "".join(f"{n},{names[s]}\n" for n, s in enumerate(STAGES))),
    ("list", lambda names: "W\n" + "".join(f"{names[s]}\n" for s in STAGES)),
    ("annot", lambda names: table(names, "{text}\t.\t.\t{onset}\t{end}\t.", "class\tinstance\tchannel\tstart\tstop\tmeta")),
    ("annot by class", lambda names: table(names, "Stage\t{text}\t{onset}\t{end}", "class\tinstance\tstart\tstop")),
    ("log", lambda names: table(names, "{clock}\tSTAGE - {text}", "22:29:00\tSTART RECORDING")),
]  # fmt: skip


@pytest.mark.parametrize("lost", [{0: "SW"}, {0: "SW", 4: "SR"}, {2: "Deeper"}, {4: "X"}], ids=str)
@pytest.mark.parametrize("form", [name for name, _ in LOST])
def test_a_scoring_with_a_stage_that_is_not_understood_is_not_used(tmp_path, form, lost):
    """Wake or REM would be lost and the others kept; the signals stay, and all its epochs are unscored."""
    text = dict(LOST)[form](NAMES | lost)
    path = night(tmp_path, scoring=text, name="night.csv")
    with pytest.raises(StageTextError) as error:
        read_scoring(tmp_path / "night.csv", examine(path, load_cohort("shhs1")).recording.start)
    for stage, name in lost.items():
        assert f"{name!r} ({STAGES.count(stage)})" in str(error.value) or f"'stage {name}' (" in str(error.value)
    prepared = prepare(path)
    assert prepared.stage.tolist() == [-1] * EPOCHS and set(prepared.labels["apnea"]) == {-1} and not prepared.events
    assert prepared.channels and next(iter(lost.values())) in prepared.provenance["scoring_refused"]


@pytest.mark.parametrize("text", ["Sleep stage X", "Sleep stage 7", "Stage Q"])
@pytest.mark.parametrize("others", [True, False])
def test_a_stage_by_its_first_words_alone(tmp_path, text, others):
    texts = [tal("+0", "300", "Sleep stage N2")] if others else []
    path = night(tmp_path, *texts, tal("+300", "30", text))
    prepared = prepare(path)
    assert prepared.stage.tolist() == [-1] * EPOCHS and text in prepared.provenance["scoring_refused"]


def test_remarks_and_events_in_unscored_stretches_refuse_nothing(tmp_path):
    """Notes, lights and calibrations before sleep, pauses, and events that happen to lie at an edge of the scored part."""
    rows = ["0,0,Biocalibration", "3,41,Look left", "50,0,Some remark", "110,25,Patient out of bed", "60,60,N2", "150,30,W"]
    rows += ["185,9,Odd thing", "150,4,Odd thing", "75,3,Odd thing"]
    path = tmp_path / "x.csv"
    path.write_text("onset,duration,description\n" + "\n".join(rows) + "\n")
    assert stage_labels(read_scoring(path), 6).tolist() == [-1, -1, 2, 2, -1, 0]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    stages=st.lists(st.integers(0, 4), min_size=4, max_size=30),
    renamed=st.sets(st.integers(0, 4), max_size=2),
    durations=st.booleans(),
    runs=st.booleans(),
)
def test_a_stage_is_kept_or_the_scoring_refused(tmp_path, stages, renamed, durations, runs):
    """Whatever stages a laboratory renames: those read are those drawn, and none is lost without a word."""
    if set(stages) <= renamed:
        renamed = set()
    names = {stage: f"Qx{'abcde'[stage]}" if stage in renamed else NAMES[stage] for stage in range(5)}
    rows, at = [], 0
    for stage, group in itertools.groupby(stages):
        length = len(list(group))
        step = length if runs and durations else 1
        rows += [(30 * (at + n), 30 * step, names[stage]) for n in range(0, length, step)]
        at += length
    title = "onset,duration,description" if durations else "onset,description"
    path = tmp_path / "x.csv"
    path.write_text("\n".join([title, *(f"{a},{b},{c}" if durations else f"{a},{c}" for a, b, c in rows), ""]))
    lost = renamed & set(stages)
    try:
        labels = stage_labels(read_scoring(path), len(stages)).tolist()
    except StageTextError:
        assert lost
        return
    # A last or single row without a duration may be a remark; all others would have been found.
    single = not durations and all(stages.count(stage) == 1 or stages[-2:].count(stage) for stage in lost)
    assert labels == stages if not lost else single


# --- events ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("apnea", "Apnea|apnoea|APNOEA|Apnées|Apnée|Apnoe|apneia|Apneu|apnea event|Apneas"),
        ("obstructive_apnea", "Obstructive apnoea|obstruktive Apnoe|Apnée obstructive|apnea obstructiva|apnea ostruttiva|"
         "apneia obstrutiva|obstructieve apneu|OApnea|Obs Apnea|A. Obstructive|SDO:ObstructiveApneaSleepEvent"),
        ("central_apnea", "Central Apnoea|zentrale Apnoe|Apnée centrale|apnea centrale|apneia central|C Apnea|A. Centrale"),
        ("mixed_apnea", "Mixed apnoea|gemischte Apnoe|Apnée mixte|apnea mixta|apnea mista|apneia mista|gemengde apneu"),
        ("hypopnea", "Hypopnoea|Hypopnoe|Hypopnée|hipopnea|ipopnea|hipopneia|hypopneu|obstruktive Hypopnoe|Central hypopnoea"),
        ("arousal", "EEG arousal|Arousal (ARO SPONT)|Micro-éveil|RERA"),
    ],
)  # fmt: skip
def test_events_in_the_languages_of_their_scorers(kind, texts):
    for text in texts.split("|"):
        assert event_of(text) == kind, text
        assert event_of(f"{text}|{text}") == kind, text
        assert event_of(text.replace("oe", "œ").replace(" ", "_").upper()) == kind, text


def test_two_names_for_one_event():
    assert event_of("Apnea|Obstructive Apnea") == "obstructive_apnea" and event_of("Apnea|Apnea") == "apnea"
    assert event_of("Central apnea|Mixed apnea") is None and is_respiratory("Central apnea|Mixed apnea")
    assert stage_of("Stage 2 sleep|2") == 2 and stage_of("REM sleep|5") == 4 and stage_of("Wake|2") is None


def test_respiratory_texts_and_those_beside_the_point():
    for text in (
        "Unsure", "apnea?", "Hypopnea with arousal", "hypop", "OA", "MA", "Obstructive event", "Respiratory event", "resp",
        "central apnoeic episode", "Apnea, no arousal", "SDB breathing event", "evento respiratorio",
    ):  # fmt: skip
        assert event_of(text) is None and is_respiratory(text), text
        assert not is_beside_the_point(text), text
    for text in (
        "Limb movement", "PLM (Left)", "PLM", "LM", "Snore", "Lights off", "SpO2 artifact", "Respiratory artifact", "Capnography",
        "Periodic breathing", "Cheyne Stokes breathing", "Spindle", "K-complex", "LegMovement", "Recording Start Time",
        "Position - Left",
        "Mouvement jambe", "Gauche", "EtCO2", "Respiratory effort", "Flow limitation", "Artefact", "Narrow complex tachycardia",
    ):  # fmt: skip
        assert event_of(text) is None and not is_respiratory(text), text
        assert is_beside_the_point(text), text
    for text in ("Foobar", "Light sleep", "Delta sleep", "S", "deep"):
        assert event_of(text) is None and not is_respiratory(text) and not is_beside_the_point(text), text


def labels_of(path, kind, epochs=EPOCHS) -> list[int]:
    return event_labels(read_scoring(path), epochs, LABEL_EVENTS[kind]).tolist()


def at(epoch: int, value: int, epochs: int = EPOCHS) -> list[int]:
    return [value if n == epoch else 0 for n in range(epochs)]


def test_an_apnea_without_its_kind_and_british_spelling_in_edf_plus(tmp_path):
    stages = tal("+0", "360", "Sleep stage N2")
    path = night(
        tmp_path, stages, tal("+95", "25", "Apnea"), tal("+185", "20", "Hypopnoea"), tal("+215", "20", "Obstructive apnoea")
    )
    prepared = prepare(path)
    assert prepared.labels["apnea"].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert prepared.labels["hypopnea"].tolist() == at(6, 1)
    assert [event.type for event in prepared.events] == ["apnea", "hypopnea", "obstructive_apnea"]


def nsrr(group: str, concept: str) -> str:
    event = "<ScoredEvent><EventType>{}</EventType><EventConcept>{}</EventConcept>"
    event += "<Start>{}</Start><Duration>{}</Duration></ScoredEvent>"
    stages = event.format("Stages|Stages", "Stage 2 sleep|2", 0, 30 * EPOCHS)
    return f"<PSGAnnotation><ScoredEvents>{stages}{event.format(group, concept, 95, 21)}</ScoredEvents></PSGAnnotation>"


def profusion(text: str) -> str:
    event = f"<ScoredEvent><Name>{text}</Name><Start>95</Start><Duration>21</Duration></ScoredEvent>"
    stages = "<SleepStage>2</SleepStage>" * EPOCHS
    return (
        f"<CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents>{event}</ScoredEvents>"
        f"<SleepStages>{stages}</SleepStages></CMPStudyConfig>"
    )


def test_an_apnea_without_its_kind_in_xml(tmp_path):
    path = tmp_path / "x.xml"
    for text in (nsrr("Respiratory|Respiratory", "Apnea|Apnea"), nsrr("Respiratory", "Apnoea"), profusion("Apnea")):
        path.write_text(text)
        assert labels_of(path, "apnea") == at(3, 1) and labels_of(path, "hypopnea") == [0] * EPOCHS


UNCLEAR = {
    "nsrr": nsrr("Respiratory|Respiratory", "Something|Something"),
    "nsrr, unsure": nsrr("Respiratory|Respiratory", "Unsure|Unsure"),
    "nsrr, elsewhere": nsrr("User|User", "Possible apnoea|PA"),
    "profusion": profusion("Unsure"),
    "table": "onset,duration,description\n0,360,N2\n95,21,Apnea (?)\n",
    "annot": "class\tinstance\tstart\tstop\nN2\t.\t0\t360\nresp_event\tX1\t95\t116\n",
    "log": "22:00:00\tSTAGE - N2\n22:01:35\tRESPIRATORY EVENT - DUR: 21 SEC. - ODD\n22:06:00\tSTOP RECORDING\n",
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_a_respiratory_text_that_is_not_understood_makes_its_epochs_unknown(tmp_path, form):
    from datetime import datetime

    path = tmp_path / "x.txt"
    path.write_text(UNCLEAR[form])
    scoring = read_scoring(path, datetime(2020, 1, 1, 22), 360.0)
    assert scoring.has_events and [(e.onset, e.duration) for e in scoring.unclear] == [(95, 21)] and not scoring.events
    for kind in ("apnea", "hypopnea"):
        assert event_labels(scoring, EPOCHS, LABEL_EVENTS[kind]).tolist() == at(3, -1)
    for kind in ("arousal", "desaturation"):
        assert event_labels(scoring, EPOCHS, LABEL_EVENTS[kind]).tolist() == [0] * EPOCHS


@pytest.mark.parametrize(
    "concept", ["SpO2 artifact|SpO2 artifact", "Respiratory artifact|Respiratory artifact", "Periodic breathing"]
)
def test_what_the_respiratory_group_holds_beside_events_makes_nothing_unknown(tmp_path, concept):
    path = tmp_path / "x.xml"
    path.write_text(nsrr("Respiratory|Respiratory", concept))
    assert labels_of(path, "apnea") == [0] * EPOCHS and read_scoring(path).ignored == {concept.split("|")[0]: 1}


@pytest.mark.parametrize(
    ("cohort", "apnea", "hypopnea"),
    [
        ("mesa", 0, 1), ("abc", 0, 1), ("mros1", 0, 1), ("mros2", 0, 1), ("ccshs", 0, 1), ("chat", 1, 0),
        ("shhs1", -1, -1), ("shhs2", -1, -1), ("cfs", -1, -1), ("sof", -1, -1), ("homepap", -1, -1), ("generic", -1, -1),
    ],
)  # fmt: skip
def test_the_tag_unsure_is_what_each_cohorts_documentation_says(tmp_path, cohort, apnea, hypopnea):
    for text, name in ((nsrr("Respiratory|Respiratory", "Unsure|Unsure"), "a.xml"), (profusion("Unsure"), "b.xml")):
        path = night(tmp_path, scoring=text, name=name)
        scoring = examine(path, load_cohort(cohort), scoring=tmp_path / name).scoring
        assert event_labels(scoring, EPOCHS, APNEA_TYPES).tolist() == at(3, apnea)
        assert event_labels(scoring, EPOCHS, ("hypopnea",)).tolist() == at(3, hypopnea)
        assert bool(scoring.unclear) == (apnea < 0)


@pytest.mark.parametrize(("man", "stages", "events"), [("aa0236", True, False), ("aa2033", False, False), ("aa0001", True, True)])
def test_scorings_that_are_documented_to_be_broken(tmp_path, man, stages, events):
    """NSRR lists men of MrOS without events, which are no negatives, and some whose stages are wrong."""
    path = night(tmp_path, scoring=nsrr("Respiratory|Respiratory", "Hypopnea|Hypopnea"), name=f"mros-visit1-{man}-nsrr.xml")
    path = path.rename(tmp_path / f"mros-visit1-{man}.edf")
    found = examine(path, load_cohort("mros1"))
    assert (stage_labels(found.scoring, EPOCHS) == 2).all() == stages
    assert event_labels(found.scoring, EPOCHS, ("hypopnea",)).tolist() == (at(3, 1) if events else [-1] * EPOCHS)
    assert bool(found.scoring_refused) != stages


def test_a_cohort_may_say_that_nobody_knows(tmp_path):
    path = night(tmp_path, scoring=table(NAMES) + "95,21,Zyx\n", name="x.csv")
    generic = load_cohort("generic")
    own = generic.model_copy(update={"scoring": generic.scoring.model_copy(update={"events": {"zyx": "unclear"}})})
    scoring = examine(path, own, scoring=tmp_path / "x.csv").scoring
    assert event_labels(scoring, EPOCHS, APNEA_TYPES).tolist() == at(3, -1) and not scoring.ignored


STAGES_ELSEWHERE = [
    *((0, text) for text in ("Éveil calme", "Stade éveil", "Wakker", "Schlafstadium W")),
    *((1, text) for text in ("Stade N1", "Stadium 1", "Slaap N1", "Estadio N1", "Fase 1")),
    *((2, text) for text in ("Stade 2", "Schlafstadium N2", "Slaap N2", "Estadio 2", "Fase N2")),
    *((3, text) for text in ("Sommeil lent profond", "Tiefschlaf", "Slaap N3", "Stade 4", "Diepe slaap")),
    *((4, text) for text in ("Sommeil paradoxal", "REM Schlaf", "Slaap REM", "Stade R", "Sonno REM")),
]


@pytest.mark.parametrize(("stage", "text"), STAGES_ELSEWHERE)
def test_stages_of_other_languages_are_read(stage, text):
    assert stage_of(text) == stage and event_of(text) is None and not is_respiratory(text)


@pytest.mark.parametrize("text", ["Sommeil lent léger", "Lichte slaap", "Sonno leggero", "Leichtschlaf", "Sueño ligero"])
def test_a_stage_of_another_language_that_may_be_two_refuses_the_scoring(tmp_path, text):
    """Light sleep is N1 or N2; to leave it out would lose all of it."""
    rows = [f"{30 * epoch},30,{text if 3 <= epoch < 7 else 'N2'}" for epoch in range(10)]
    path = write_rows(tmp_path, "onset,duration,event", rows)
    with pytest.raises(StageTextError, match="unknown stage texts"):
        read_scoring(path)
    assert not is_respiratory(text)


@pytest.mark.parametrize("codes", ["1 1 2 3 4 3 5 1", "5 5 3 2 1 2 4 5"])
def test_numbers_that_may_count_from_one_refuse_the_scoring(tmp_path, codes):
    """W to REM as 1 to 5, or backwards: read from 0, each stage would be its neighbour."""
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["epoch,stage", *(f"{n},{code}" for n, code in enumerate(5 * codes.split(), 1)), ""]))
    with pytest.raises(StageTextError, match="unclear whether 1 is N1 or wake"):
        read_scoring(path)
    path.write_text(path.read_text().replace("1,1", "1,W", 1))
    assert codes[0] != "1" or stage_labels(read_scoring(path), 40)[0] == 0


def test_a_stage_of_many_words_that_is_not_understood_is_named_by_its_beginning(tmp_path):
    rows = [f"{30 * epoch},30,{'Qx ' * 60 if 3 <= epoch < 7 else 'N2'}" for epoch in range(10)]
    path = write_rows(tmp_path, "onset,duration,event", rows)
    with pytest.raises(StageTextError, match=r"'(Qx ){26}Qx' \(4\), first at 0:01:30"):
        read_scoring(path)


def test_an_event_beside_a_stage_in_one_text_refuses_the_scoring(tmp_path):
    rows = [f"{30 * epoch},30,{'Wach nach Arousal' if epoch == 4 else 'N2'}" for epoch in range(10)]
    path = write_rows(tmp_path, "onset,duration,stage", rows)
    with pytest.raises(StageTextError, match=r"'Wach nach Arousal' \(1\)"):
        read_scoring(path)


def test_an_unknown_text_whose_times_are_damaged_is_refused_without_a_time(tmp_path):
    rows = ["1e12,30,Qx", "1e12,30,Qx", *(f"{30 * epoch},30,N2" for epoch in range(1, 10))]
    path = write_rows(tmp_path, "onset,duration,event", rows)
    with pytest.raises(StageTextError, match=r"'Qx' \(2\); the scoring is not used"):
        read_scoring(path)


@pytest.mark.parametrize("odd", ["60,60,Odd thing", "100,50,Odd thing"])
def test_a_text_that_touches_a_stage_at_one_end_and_runs_over_one_at_the_other_stands_not_for_a_stage(tmp_path, odd):
    """It begins where the first stage ends and lasts into the second, or begins in the second and lasts to the third."""
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["onset,duration,description", "0,60,N2", "90,30,W", "150,30,N3", odd, ""]))
    assert stage_labels(read_scoring(path), 6).tolist() == [2, 2, -1, 0, -1, 3]


def test_an_apnea_of_sleep_is_no_stage():
    for text in ("Schlafapnoe", "Slaapapneu", "Sommeil apnée"):
        assert not names_a_stage(text) and (is_respiratory(text) or event_of(text))


@settings(max_examples=100)
@given(st.text("apnoehyORCM ._-|?", max_size=24))
def test_no_text_with_the_noun_of_an_apnea_is_passed_over(text):
    key = "".join(character for character in text.casefold() if character.isalnum())
    # Of carbon dioxide ("capno") the noun is another.
    if "apn" in key.replace("capn", ""):
        assert event_of(text) is not None or is_respiratory(text)


def test_the_doctor_reports_every_text_with_its_count(tmp_path, capsys):
    texts = [
        (tal("+0", "360", "Sleep stage N2")),
        tal("+95", "21", "Unsure"),
        tal("+5", "", "Lights off"),
        tal("+7", "", "Foobar"),
    ]
    night(tmp_path, *texts, tal("+17", "", "Foobar"))
    assert main(["doctor", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for end in (
        "not understood, epochs without a label of apnea and hypopnea: 'Unsure' 1",
        "not understood, without effect: 'Foobar' 2",
        "ignored: 'Lights off' 1",
    ):
        assert [line.split()[0] for line in lines if line.endswith(end)] == ["texts", "texts"]  # of the recording, of the folder
    night(tmp_path, scoring=table(NAMES | {0: "SW"}), name="night.csv")
    assert main(["doctor", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert (
        "NOT USED" in text
        and f"'SW' (5), first at {timedelta(seconds=30 * STAGES.index(0))};" in text
        and "1 usable, 0 would be refused" in text
    )


def test_the_order_of_rows_changes_nothing(tmp_path):
    rows = table(NAMES | {0: "SW"}).splitlines()
    path = tmp_path / "x.csv"
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows[1:], len(rows) - 1)
        path.write_text("\n".join([rows[0], *shuffled, ""]))
        with pytest.raises(StageTextError, match=r"'SW' \(5\)"):
            read_scoring(path)
    numbers = table({0: "0", 1: "1", 2: "2", 3: "3", 4: "4"}).splitlines()
    path.write_text("\n".join([numbers[0], *np.random.default_rng(1).permutation(numbers[1:]), ""]))
    assert stage_labels(read_scoring(path), EPOCHS).tolist() == STAGES


@pytest.mark.parametrize(
    "text", ["Atempause", "apena", "OSA event", "CSA", "OA event", "Hyp events", "hyponea", "Apneoa 12 s", "possible apnoae"]
)
def test_misspelt_and_abbreviated_apneas_are_unclear_and_never_negative(text):
    assert is_respiratory(text) and not is_beside_the_point(text)


@pytest.mark.parametrize("text", ["OSat dropout", "alpha intrusion", "area", "open window", "Leg movement", "capnography off"])
def test_words_that_only_look_like_apneas_are_none(text):
    assert not is_respiratory(text)
