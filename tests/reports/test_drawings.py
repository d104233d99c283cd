"""Where the drawings of a page and of the lineage put things."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sleepfm.reports.lineage import BOX_WIDTH, Lineage, Node, to_svg
from sleepfm.reports.plots import page_figure
from sleepfm.signals.scorings.scoring import Event


def test_events_of_a_page_are_named_at_their_middle_and_cut_at_its_edges():
    events = [Event(590.0, 20.0, "central_apnea"), Event(620.0, 5.0, "mixed_apnea"), Event(630.0, 20.0, "obstructive_apnea")]
    signals = {"AIRFLOW": np.zeros(6000), "SPO2": np.linspace(90, 99, 6000)}
    figure = page_figure(signals, {"SPO2": "%"}, 600.0, 60.0, {"apnea, model": events}, title="A page", used=["SPO2"])
    flow, oximetry, track = figure.axes
    assert figure.get_figheight() == pytest.approx(0.9 + 3 * 0.62)  # two signals and the line of events, beside title and axis
    assert flow.get_ylabel() == "AIRFLOW\nnot used" and oximetry.get_ylabel() == "SPO2\n(%)"
    assert [(text.get_position(), text.get_text()) for text in track.texts] == [
        ((605.0, 0), "central apnea"),
        ((622.5, 0), ""),
        ((640.0, 0), "obstructive apnea"),
    ]
    assert track.get_xlim() == (600.0, 660.0)
    assert [tuple(np.round(line.get_xdata()[[0, -1]], 2)) for axis in (flow, oximetry) for line in axis.lines] == [
        (600, 659.99)
    ] * 2


def test_edges_of_the_lineage_go_from_the_right_of_a_box_to_the_left_of_another_at_half_their_heights():
    nodes = (
        Node("a", "data", "shards", ("one", "two")),
        Node("b", "pretrained", "eeg"),
        Node("c", "downstream", "stage", ("one",)),
    )
    svg = to_svg(Lineage(nodes, (("a", "b"), ("b", "c"), ("a", "c"))))
    number = r"([\d.]+)"
    boxes = [
        tuple(map(float, found))
        for found in re.findall(rf'<rect x="{number}" y="{number}" width="{BOX_WIDTH}" height="{number}"', svg)
    ]
    a, b, c = [(x, x + BOX_WIDTH, y + height / 2) for x, y, height in boxes]
    assert a[1] < b[0] < b[1] < c[0]
    starts = [tuple(map(float, found)) for found in re.findall(rf'd="M{number},{number} C', svg)]
    tips = [tuple(map(float, found)) for found in re.findall(rf'd="M{number},{number} l', svg)]
    assert starts == [pytest.approx(box[1:]) for box in (a, b, a)]
    assert tips == [pytest.approx((box[0], box[2])) for box in (b, c, c)]
