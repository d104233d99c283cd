from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL.ImageColor import getrgb

from sleepfm.errors import DatasetError
from sleepfm.evaluation.event_figures import event_metrics
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement, runs_of_epochs
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.paired import paired_agreement
from sleepfm.evaluation.regression import evaluate_regression
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.subsets import SubsetAhi, SubsetResult
from sleepfm.reports.evaluation_page import RegressionResult, evaluation_page
from sleepfm.reports.lineage import Lineage, Node, to_svg
from sleepfm.reports.night_facts import event_rows
from sleepfm.reports.night_page import night_page
from sleepfm.reports.palette import EVENT_COLOURS, LIGHT, STAGE_COLOURS
from sleepfm.reports.plots import GAP, HEIGHTS, LEFT, RIGHT, TOP, WIDTH, night_picture, night_png
from sleepfm.reports.report import NightExample, ReportData, Result, StepCost, build_report, loss_columns
from sleepfm.reports.signal_page import choose_page
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS
from sleepfm.training.tracking.trace import Trace

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def night(recordings, downstream_packages):
    prepared = prepare_night(recordings[0])
    return NightExample(Scorer.load(list(downstream_packages.values())).score(prepared), prepared, "held out")


@pytest.fixture
def data(night, tmp_path):
    score, prepared = night.score, night.prepared
    subject = np.where(np.arange(score.n_epochs) < 20, "a", "b")
    stage = evaluate(TASKS["stage"], prepared.stage, score.hypnodensity, subject, n_boot=50)
    apnea = score.probability["apnea"]
    event = evaluate(TASKS["apnea"], prepared.labels["apnea"], np.c_[1 - apnea, apnea], subject, n_boot=50)
    index = paired_agreement("ahi", [4.0, 9.0], [5.0, 12.0], ["a", "b"], unit="1/h", n_boot=50)
    figures = event_metrics([], n_boot=50)
    found = EventResult("apnea", True, 0.3, 2, EventAgreement(1, 1, 0), figures, index)
    traces = {}
    for name in ("pretrain-eeg", "probe-<b>stage"):
        trace = Trace(tmp_path / f"{len(traces)}.jsonl", 0)
        for step in range(1, 6):
            trace.append({"step": step, "loss": 1 / step, "parts": {"contrastive": 0.5 / step}})
        trace.close()
        traces[name] = tmp_path / f"{len(traces)}.jsonl"
    lineage = Lineage((Node("d", "data", "shards"), Node("m", "downstream", "sleepfm-stage v1")), (("d", "m"),))
    return ReportData(
        title="A run & its <report>",
        summary="one sentence",
        results=[
            Result("Stages", "sleepfm-stage:1", "test", stage, 480),
            Result("Apnea", "sleepfm-apnea:1", "test", event, 480, EventAgreement(1, 1, 0)),
        ],
        traces=traces,
        night=night,
        subsets={"stage": [SubsetResult(("EEG",), stage)], "apnea": [SubsetResult(("RESP",), event, found)]},
        ahi_subsets=[SubsetAhi(("EEG", "RESP"), found.index), SubsetAhi(("EEG",), None, "the model of apnea takes none of them")],
        lineage=lineage,
        environment={"python": "3.11"},
        configuration={"probe.yaml": "a: <1>"},
        steps=[StepCost("synth", 3.0, 2**30), StepCost("shards", 4.5)],
        notes=["a note"],
    )


class Page(HTMLParser):
    """Collects tags, attributes and text; checks that tags close in order."""

    VOID = {"meta", "img", "br", "path", "rect", "circle", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def images(page):
    found = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    return [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in found]


def test_report_is_one_whole_file_with_every_section(data, tmp_path):
    path = build_report(tmp_path / "report", data)
    pages = {"evaluation-sleepfm-stage-1-test.html", "evaluation-sleepfm-apnea-1-test.html", "night.html"}
    assert {p.name for p in path.parent.iterdir()} == {"index.html", *pages}
    text = path.read_text()
    page = Page(text)
    assert text.count("<svg") > 8 and not images(page)
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("#") or value in pages, (tag, value)
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    sections = {value for tag, name, value in page.attributes if tag == "h2" and name == "id"}
    assert sections == {"results", "subsets", "night", "training", "lineage", "run"}
    shown = " ".join(page.text)
    assert "A run & its <report>" in shown and "a: <1>" in shown
    stage = data.results[0].evaluation
    assert f"{100 * stage.metrics['majority_accuracy'].value:.1f}" in shown
    assert "shhs1-200001" in shown and "per hour of the epochs staged as sleep" in shown
    assert "Positive runs against events: F1" in shown
    # The AHI of a subset of modalities, and why another has none.
    assert re.search(r"EEG \+ RESP\s+2\s+2\.0\s", shown) and "Event F1, overlap 20 %" in shown
    assert "Not assessed with the 1 other subsets: the model of apnea takes none of them." in " ".join(shown.split())


def test_report_of_nothing_is_a_page(tmp_path):
    page = Page(build_report(tmp_path, ReportData(title="Empty")).read_text())
    assert images(page) == [] and "Empty" in " ".join(page.text)


def test_the_page_of_a_number_gives_errors_beside_the_baseline(tmp_path):
    truth, estimate, people = [50.0, 60.0, 72.0], [54.0, 58.0, 75.0], ["a", "b", "c"]
    found = evaluate_regression("age", truth, estimate, people, 60.0, unit="years", n_boot=20)
    paired = paired_agreement("age", truth, estimate, people, unit="years", n_boot=0)
    evaluation_page(tmp_path / "page.html", RegressionResult("age", "sleepfm-age", "test", found, paired, "LEAK, allowed: a"))
    text = (tmp_path / "page.html").read_text()
    shown = " ".join(" ".join(Page(text).text).split())
    assert "sleepfm-age on test: 3 recordings of 3 people" in shown and "LEAK, allowed: a." in shown
    # (4 + 2 + 3) / 3, and (10 + 0 + 12) / 3 for who always names 60.
    assert "Mean absolute error (years) 3.0 always naming 60.0: 7.3" in shown
    assert "Bland-Altman plot of 3 recordings, age: bias 1.7" in text and "model less known (years)" in shown


def test_same_data_same_bytes(data, tmp_path):
    first = build_report(tmp_path / "a", data).read_bytes()
    assert build_report(tmp_path / "b", data).read_bytes() == first


def test_undefined_figures_are_dashes_with_a_reason(tmp_path):
    empty = evaluate(TASKS["apnea"], np.zeros(9, int), np.tile([0.7, 0.3], (9, 1)), ["a"] * 9)
    data = ReportData(title="One class", results=[Result("Apnea", "m:1", "test", empty)])
    text = build_report(tmp_path, data).read_text()
    assert "apnea absent in truth" in text and "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_night_page_and_figure(night, tmp_path):
    night_page(tmp_path / "report.html", night)
    page = Page((tmp_path / "report.html").read_text())
    assert images(page) == [] and any(tag == "svg" and name == "aria-label" for tag, name, _ in page.attributes)
    assert night_png(night).startswith(PNG) and night_png(night) == night_png(night)


def test_page_shows_an_apnea_found_and_scored():
    def example(detected, scored, stages, runs=()):
        score = SimpleNamespace(events=detected, runs=runs, n_epochs=len(stages), stages=np.array(stages))
        return NightExample(score, SimpleNamespace(events=scored))

    found = runs_of_epochs([0, 1, 0, 0, 0, 1, 0, 1, 0, 0], "apnea")
    scored = (Event(20.0, 15.0, "hypopnea"), Event(155.0, 20.0, "central_apnea"))
    assert choose_page(example(found, scored, [2] * 10)) == 150.0
    assert choose_page(example((), scored, [2] * 10, found)) == 150.0
    assert choose_page(example((), scored, [2] * 10)) == 150.0
    assert choose_page(example((), (), [0] * 4 + [2] * 6)) == 210.0
    assert choose_page(example((), (), [0] * 3)) == 0.0
    assert choose_page(example(runs_of_epochs([0, 0, 1], "apnea"), (), [2] * 3)) == 30.0


def test_an_apnea_that_was_called_a_hypopnea_was_not_found():
    """The page goes to the hypopnea that both found, not to the apnea where the model found a hypopnea."""
    detected = (Event(30.0, 20.0, "hypopnea"), Event(215.0, 20.0, "hypopnea"))
    scored = (Event(30.0, 20.0, "obstructive_apnea"), Event(212.0, 20.0, "hypopnea"))
    score = SimpleNamespace(events=detected, runs=(), n_epochs=10, stages=np.full(10, 2))
    assert choose_page(NightExample(score, SimpleNamespace(events=scored))) == 210.0


def test_the_page_says_which_channels_the_models_were_given(night, tmp_path):
    night_page(tmp_path / "report.html", night)
    shown = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).text).split())
    others = [name for name in night.prepared.channels if name not in night.score.channels]
    assert {"AIRFLOW", "SPO2"} <= set(others)
    assert shown.count("only shown, not used") == len(set(others) - {"SPO2"})
    for task, names in night.score.inputs.items():
        assert re.search(rf"{task[:5]}\w*s?: \S+, from {', '.join(names)}", shown) or task == "stage"
    assert f"from {', '.join(night.score.inputs['stage'])}" in shown
    assert "A run of positive epochs" in shown and "Lines that end in" in shown
    assert "Apnea, positive runs" in shown and "a run is no event" in shown and "AHI:" not in shown
    assert "Not assessed: the model of apneas tells epochs, not events" in shown


def height(image: bytes) -> int:
    return int.from_bytes(image[20:24])


def test_a_page_shows_nothing_of_what_nobody_scored(night, downstream_packages, tmp_path):
    score = Scorer.load([downstream_packages["stage"]]).score(night.prepared)
    unscored = replace(
        night.prepared, events=(), stage=np.full_like(night.prepared.stage, -1),
        labels={name: np.full_like(values, -1) for name, values in night.prepared.labels.items()},
    )  # fmt: skip
    alone = NightExample(score, unscored)
    staged = NightExample(score, replace(unscored, stage=night.prepared.stage))
    assert height(night_png(staged)) > height(night_png(alone))  # the human hypnogram is a panel more
    assert event_rows(alone) == {}
    night_page(tmp_path / "report.html", alone)
    shown = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).text).split()).lower()
    assert "ahi not assessed no model of apneas was given" in shown and "human" not in shown and "total sleep time" in shown
    assert "apnea:" not in shown and "hypopnea:" not in shown
    assert list(event_rows(NightExample(score, night.prepared))) == ["apnea, scored", "hypopnea, scored"]
    apnea = Scorer.load([downstream_packages["apnea"]]).score(night.prepared)
    night_page(tmp_path / "report.html", NightExample(apnea, night.prepared))
    shown = " ".join(Page((tmp_path / "report.html").read_text()).text)
    shown = " ".join(shown.split())
    assert "Total sleep time not assessed no model of sleep stages" in shown
    assert "Hypopnea, positive" not in shown and "Apnea, positive runs" in shown
    assert list(event_rows(NightExample(apnea, night.prepared))) == [
        "apnea, positive epochs",
        "apnea, scored",
        "hypopnea, scored",
    ]


def test_hypnodensity_is_blank_in_unscored_epochs():
    density = np.full((6, 5), 0.2)
    density[2] = np.nan
    picture = night_picture(np.zeros(6, np.int8), density, {}, title="Müller")

    def colour(seconds, share):
        x = LEFT + seconds / 180 * (WIDTH - RIGHT - LEFT)
        return picture.getpixel((round(x), round(TOP + HEIGHTS["density"] * (1 - share))))

    places = ((5, 0.5), (58, 0.9), (62, 0.1), (75, 0.1), (88, 0.1), (92, 0.9), (175, 0.5))
    assert [colour(*place) == (255, 255, 255) for place in places] == [False, False, True, True, True, False, False]
    # Wake on top.
    assert [colour(5, share) for share in (0.9, 0.1)] == [getrgb(STAGE_COLOURS[name]) for name in ("W", "N3")]


def test_a_picture_shows_events_and_lost_epochs_where_they_are():
    stages, event = np.array([2, 2, -1, 4, 4, 4], np.int8), Event(90.0, 30.0, "obstructive_apnea")
    picture = night_picture(stages, np.full((6, 5), 0.2), {"apnea": [event]}, title="", spo2=np.full(180, np.nan))
    model = TOP + HEIGHTS["density"] + GAP
    events = model + HEIGHTS["model"] + GAP + HEIGHTS["events"] // 2

    def colour(seconds, y):
        return picture.getpixel((round(LEFT + seconds / 180 * (WIDTH - RIGHT - LEFT)), y))

    assert [colour(s, events) == getrgb(EVENT_COLOURS["apnea"]) for s in (88, 92, 118, 122)] == [False, True, True, False]
    assert [colour(s, model + 4) == getrgb(LIGHT["line"]) for s in (58, 62, 88, 92)] == [False, True, True, False]


def test_losses_are_read_from_a_trace(data, tmp_path):
    columns = loss_columns(data.traces["pretrain-eeg"])
    assert list(columns) == ["step", "loss", "contrastive"] and list(columns["step"]) == [1, 2, 3, 4, 5]
    (tmp_path / "no.jsonl").write_text('{"epoch": 1}\n')
    for path in (tmp_path / "no.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(DatasetError, match="trace"):
            loss_columns(path)


def test_lineage_puts_children_right_of_all_parents():
    nodes = tuple(Node(key, "pretrained", key) for key in ("a", "b", "c", "d"))
    svg = to_svg(Lineage((Node("s", "data", "<shards>"), *nodes), (("s", "a"), ("a", "b"), ("s", "c"), ("b", "d"))))
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    left = [float(element.get("x")) for element in root.iter(f"{space}rect")]
    x = dict(zip(texts, left, strict=True))
    assert x["<shards>"] < x["a"] == x["c"] < x["b"] < x["d"]
    assert len(list(root.iter(f"{space}path"))) == 8
    with pytest.raises(ValueError, match="cycle"):
        to_svg(Lineage(nodes, (("a", "b"), ("b", "a"))))
