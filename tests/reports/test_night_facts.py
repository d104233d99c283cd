"""What a night's page says: never a figure of what nobody looked for, and the same as the files beside it."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_report import made_example, without_breathing

from sleepfm.constants import Stage
from sleepfm.evaluation.breathing import index_by_part
from sleepfm.evaluation.events import index_per_hour
from sleepfm.evaluation.lights import Lights
from sleepfm.evaluation.paired import severity_of
from sleepfm.inference.night_frames import event_confidence, event_stages
from sleepfm.reports.event_pages import BUDGET, event_pages
from sleepfm.reports.night_comparison import compared_figures
from sleepfm.reports.night_drawing import draw_night, night_alt
from sleepfm.reports.night_facts import (
    NOT_ASSESSED,
    NightExample,
    ahi_by_position,
    ahi_by_stage,
    ahi_rows,
    channel_facts,
    event_facts,
    event_rows,
    first_page,
    lights_told,
    sleep_rows,
    when,
    why_no_ahi,
)
from sleepfm.reports.night_files import write_night
from sleepfm.reports.night_page import night_page
from sleepfm.reports.svg import WIDE
from sleepfm.signals.scorings.scoring import Event


@pytest.fixture(scope="module")
def example(recordings: list[Path]) -> NightExample:
    return made_example(recordings[0], times=4)


def test_figures_are_those_of_the_score(example: NightExample) -> None:
    figures = {figure.name: figure for figure in first_page(example)}
    score = example.score
    assert figures["AHI"].value == f"{score.ahi:.1f}/h" and figures["AHI"].note == f"severity: {severity_of(score.ahi)}"
    assert figures["ODI 3 %"].value == f"{score.oximetry.odi_3:.1f}/h"
    assert figures["Arousal index"].value == f"{score.arousal_index:.1f}/h"
    assert all(figure.assessed for figure in figures.values())
    rows = ahi_rows(score)
    assert [row.value for row in rows] == pytest.approx([score.ahi, *score.ahi_by_definition.values()])
    assert [row.severity for row in rows] == [severity_of(row.value) for row in rows]
    assert [row.hours for row in rows] == pytest.approx([score.breathing.hours, *score.hours_by_definition.values()])


def test_figures_of_a_part_of_the_night_say_of_which_part(example: NightExample) -> None:
    """An EEG that comes off ends the time in bed: total sleep time and efficiency are then of what came before."""
    score, stop = example.score, example.score.n_epochs // 3
    density = np.where(np.arange(score.n_epochs)[:, None] < stop, score.hypnodensity, np.nan)
    stages = np.where(np.arange(score.n_epochs) < stop, score.stages, -1)
    part = replace(example, score=replace(score, hypnodensity=density, stages=stages))
    (told,) = (figure.note for figure in first_page(part) if figure.name == "Total sleep time")
    assert told == f"of {stop / 2:.0f} min with stages; the recording lasts {score.n_epochs / 2:.0f} min"
    (whole,) = (figure.note for figure in first_page(example) if figure.name == "Total sleep time")
    assert not whole


def test_what_nobody_looked_for_is_not_assessed_and_never_0(example: NightExample, tmp_path: Path) -> None:
    bare = without_breathing(example)
    figures = {figure.name: figure for figure in first_page(bare)}
    for name in ("AHI", "ODI 3 %", "T90"):
        assert figures[name].value == NOT_ASSESSED and figures[name].note, name
    assert "airflow or effort" in figures["AHI"].note and "SpO₂" in figures["T90"].note
    # A line without events would say that there were none.
    assert (
        event_rows(bare) == {} and "apnea:" not in night_alt(bare) and ">Hypopnea</text>" not in draw_night(bare, WIDE).markup()
    )
    deaf = replace(example.score, probability=example.score.probability | {"apnea": np.full(example.score.n_epochs, np.nan)})
    assert list(event_rows(replace(example, score=deaf))) == ["apnea, scored", "hypopnea", "hypopnea, scored"]
    no_eeg = replace(bare.score, without_evidence=("apnea", "hypopnea", "arousal"))
    assert ">Arousal</text>" not in draw_night(replace(bare, score=no_eeg), WIDE).markup()
    assert ">Arousal</text>" in draw_night(bare, WIDE).markup()
    assert ahi_rows(bare.score) == () and ahi_by_stage(bare.score) == () and event_facts(bare) == ()
    night_page(tmp_path / "report.html", bare)
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]+>", " ", (tmp_path / "report.html").read_text(), flags=re.DOTALL).split())
    assert text.count("not assessed") + text.count("Not assessed") >= 7
    assert not re.search(r"(?<!\d)0\.0/h", text) and "severity" not in text
    # Without a model, without sleep, and with a model of epochs: each has its own reason.
    score = example.score
    assert "no model of hypopneas" in why_no_ahi(replace(score, models={"stage": "s", "apnea": "a"}))
    awake = replace(score, stages=np.zeros_like(score.stages))
    assert "no epoch staged as sleep" in why_no_ahi(awake)
    assert "tells epochs, not events" in why_no_ahi(replace(score, event_threshold={}))


def test_stages_and_positions_share_out_the_events_of_the_ahi(example: NightExample) -> None:
    score = example.score
    for parts in (ahi_by_stage(score), ahi_by_position(example)):
        hours = sum(part.hours for part in parts)
        assert sum(part.found for part in parts) / hours == pytest.approx(score.ahi)
        assert hours == pytest.approx(score.breathing.hours)
    assert ahi_by_position(replace(example, position=None)) == ()


def test_an_event_has_one_stage_in_the_table_the_captions_and_the_index(example: NightExample, tmp_path: Path) -> None:
    """That of the epoch of sleep that most of it lies in, though its middle may lie in Wake."""
    stages = np.zeros_like(example.score.stages)
    stages[1], stages[4:6], stages[8] = Stage.N1, (Stage.N2, Stage.REM), -1
    events = (
        Event(55.0, 40.0, "obstructive_apnea"),  # 5 s of N1, then Wake
        Event(100.0, 75.0, "hypopnea"),  # Wake, 30 s of N2, 25 s of REM
        Event(190.0, 20.0, "hypopnea"),  # Wake alone
        Event(245.0, 20.0, "central_apnea"),  # unscored alone
        Event(262.0, 20.0, "hypopnea"),  # unscored, then Wake
    )
    density = np.full((len(stages), 5), 0.2)
    score = replace(example.score, stages=stages, hypnodensity=density, events=events, lights=Lights())
    assert event_stages(score, events) == ["N1", "N2", "W", None, "W"]
    counted = {part.name: part.found for part in ahi_by_stage(score)}
    assert counted == {"N1": 1, "N2": 1, "N3": 0, "REM": 0} and sum(row.asleep for row in score.breathing.counted) == 2
    assert {fact.event: fact.stage for fact in event_facts(replace(example, score=score))} == dict(
        zip(events, ("N1", "N2", "W", "", "W"), strict=True)
    )
    # Nothing counts before lights off; there an event has the stage of the epoch that holds most of it.
    late = replace(score, lights=Lights(off=150.0))
    assert event_stages(late, events)[:2] == ["W", "REM"] and sum(part.found for part in ahi_by_stage(late)) == 1
    write_night(tmp_path, score, example.prepared, example.start)
    table = pd.read_csv(tmp_path / "events.csv", keep_default_na=False)
    assert table["stage"].tolist() == ["N1", "N2", "W", "", "W"]


def test_a_latency_of_what_there_is_none_of_is_not_defined(example: NightExample, tmp_path: Path) -> None:
    stages = example.score.stages
    density = np.full((len(stages), 5), 0.2)
    for absent, rows in (
        (stages == Stage.REM, {"REM latency, from sleep onset": "not defined (no REM)"}),
        (
            stages > Stage.W,
            {
                "Total sleep time": "0.0 min",
                "Sleep latency": "not defined (no sleep)",
                "REM latency, from sleep onset": "not defined (no sleep)",
                "Wake after sleep onset": "not defined (no sleep)",
            },
        ),
        (stages > -2, {"Total sleep time": "not assessed", "REM latency, from sleep onset": "not assessed"}),
    ):
        value = -1 if absent.all() else int(Stage.W)
        score = replace(example.score, stages=np.where(absent, value, stages).astype(np.int8), hypnodensity=density)
        told = dict(sleep_rows(score))
        assert rows.items() <= told.items()
        night_page(tmp_path / "report.html", replace(example, score=score))
        page = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text()).split())
        assert all(f"{name} {text}" in page for name, text in rows.items()) and "– min" not in page
    assert "not" not in "".join(dict(sleep_rows(example.score)).values())


def test_definitions_of_hypopneas_name_the_desaturation(example: NightExample) -> None:
    for row in ahi_rows(example.score)[1:]:
        assert re.fullmatch(r"hypopneas with a desaturation of [34] %( or an arousal)?", row.name)


spans = st.lists(st.tuples(st.floats(0, 290), st.floats(0, 60)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(spans, st.lists(st.integers(-1, 2), min_size=10, max_size=10))
def test_parts_of_a_night_add_up(pairs: list[tuple[float, float]], part: list[int]) -> None:
    events = [Event(onset, min(length, 300 - onset), "hypopnea") for onset, length in pairs]
    found = index_by_part(events, part, ("a", "b", "c"))
    hours = sum(each.hours for each in found)
    total = index_per_hour(events, np.array(part) >= 0)
    assert math.isnan(total) if not hours else sum(each.found for each in found) == pytest.approx(total * hours)
    assert all(math.isnan(each.per_hour) for each in found if not each.hours)


def test_events_come_by_confidence_with_their_evidence(example: NightExample, tmp_path: Path) -> None:
    facts, score = event_facts(example), example.score
    assert len(facts) == sum(event.type != "arousal" for event in score.events) > 3
    sure = [fact.confidence for fact in facts]
    assert sure == sorted(sure, reverse=True)
    one = facts[0].event
    own = score.seconds["apnea" if one.type.endswith("apnea") else "hypopnea"][int(one.onset) : int(one.onset + one.duration)]
    assert sure[0] == pytest.approx(own.mean()) == event_confidence(score, one)
    write_night(tmp_path, score, example.prepared, example.start)
    table = pd.read_csv(tmp_path / "events.csv")
    assert table["confidence"].notna().all()
    by_onset = {(row.onset_s, row.type): row for row in table.itertuples()}
    for fact in facts:
        row = by_onset[(fact.event.onset, fact.event.type)]
        assert row.clock == fact.clock and row.confidence == pytest.approx(fact.confidence, abs=1e-4)
        assert (math.isnan(row.desaturation_percent) and fact.depth is None) or row.desaturation_percent == fact.depth
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["severity"] == severity_of(score.ahi) and summary["ahi_by_stage"].keys() == {"N1", "N2", "N3", "REM"}
    assert summary["ahi_by_position"] is None


def test_every_event_has_its_picture_on_some_page(example: NightExample) -> None:
    pages = event_pages(example)
    assert [shown.number for page in pages.pages for shown in page] == list(range(1, len(event_facts(example)) + 1))
    assert pages.rows == ("flow", "chest", "abdom.", "SpO₂")
    for shown in pages.pages[0]:
        assert "aria-label" in shown.picture and f"{shown.fact.event.duration:.0f} s" in shown.picture
        assert "nan" not in shown.picture
    long = replace(example.score, events=(Event(0.0, example.score.n_epochs * 30.0 - 30, "hypopnea"),))
    assert event_pages(replace(example, score=long)).count == 1


def test_the_human_is_beside_each_event_and_each_figure(example: NightExample) -> None:
    found = [fact.human for fact in event_facts(example)]
    assert found.count(True) > 0.7 * len(found)
    figures = {figure.name: figure for figure in compared_figures(example.score, example.prepared)}
    assert {"total sleep time", "REM", "AHI"} <= figures.keys()
    assert figures["AHI"].difference == figures["AHI"].model - figures["AHI"].human
    assert compared_figures(without_breathing(example).score, without_breathing(example).prepared) == ()


def test_the_page_names_nobody_unless_it_is_told_to(example: NightExample, tmp_path: Path) -> None:
    shown = replace(example, identity="M 02-MAY-1951 Doe_John <b>")
    assert when(example) == "22:41 to 23:41, 1 h 00 min" and when(shown).startswith("2021-03-04, 22:41")
    night_page(tmp_path / "open.html", shown)
    night_page(tmp_path / "closed.html", example)
    opened, closed = (tmp_path / "open.html").read_text(), (tmp_path / "closed.html").read_text()
    assert "Doe_John &lt;b&gt;" in opened and "2021-03-04" in opened
    assert "2021" not in closed and "name and date not shown" in closed
    unknown = replace(example, start=None, prepared=replace(example.prepared, provenance={}))
    assert when(unknown) == "1 h 00 min; the time of day is not known"
    assert "Lights off 22:43: stated by option" in lights_told(example)[0]


def test_channels_say_what_they_were_used_for_and_how_much_is_usable(example: NightExample) -> None:
    facts = {fact.name: fact for fact in channel_facts(example)}
    assert facts["AIRFLOW"].tasks == ("apneas", "hypopneas") and facts["SPO2"].tasks == ("oximetry",)
    assert facts["EEG_C4"].usable == pytest.approx(1 - 2 / example.score.n_epochs) and "disconnected 2 %" in facts["EEG_C4"].flags
    assert facts["EEG_C4"].source == "C4-A1" and facts["ECG"].usable == 1.0 and "mains" in facts["ECG"].flags


def test_the_page_is_one_file_without_script_and_the_same_each_time(example: NightExample, tmp_path: Path) -> None:
    for name in ("a", "b"):
        night_page(tmp_path / name, example)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src)="([^"]*)"', text))
    targets = set(re.findall(r'id="([^"]+)"', text))
    assert {link[1:] for link in re.findall(r'href="(#[^"]*)"', text)} <= targets
    # Every picture says in numbers what it shows.
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]*)"', text)
    assert len(labels) > 8 and all(re.search(r"\d", label) for label in labels)
    assert text.count("<svg") == len(labels) + text.count('aria-hidden="true"')


@pytest.mark.slow
def test_ten_hours_of_a_very_sick_person_are_small_and_quick(recordings: list[Path], tmp_path: Path) -> None:
    example = made_example(recordings[0], times=40)
    score = example.score
    many = [Event(float(second), 18.0, "hypopnea") for second in range(40, score.n_epochs * 30 - 60, 36)]
    example = replace(example, score=replace(score, events=tuple(many)))
    began = time.process_time()
    night_page(tmp_path / "report.html", example)
    took = time.process_time() - began
    size = (tmp_path / "report.html").stat().st_size
    assert score.n_epochs == 1200 and len(many) > 900
    assert size <= 3_000_000 and BUDGET < 3_000_000
    assert took < 8, "processor time, beside other jobs"
