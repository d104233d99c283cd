"""Where the drawings of a page and of the lineage put things."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleepfm.reports.lineage import BOX_WIDTH, Lineage, Node, to_svg
from sleepfm.reports.night_drawing import time_ticks
from sleepfm.reports.night_tables import clock_of
from sleepfm.reports.svg import Scale, envelope, ticks, trace


def test_a_trace_goes_through_its_values_and_stops_where_there_are_none():
    commands = trace([0.0, 1.0, 0.5, np.nan, 0.25, 0.25], 20)
    assert commands == "M0 20l1-20 1 10M4 15l1 0"
    assert trace([np.nan, np.nan], 20) == "" and trace([0.5], 20) == "M0 10l0 0"


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=50))
def test_a_trace_can_be_read_back(values):
    points, place = {}, None
    for command, numbers in re.findall(r"([Ml])([^Ml]*)", trace(values, 40)):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"(-?\d+) ?(-?\d+)", numbers)]
        if command == "M":
            ((x, y),) = pairs
            place = [x, y]
            points[x] = y
            continue
        for across, down in pairs:
            place = [place[0] + across, place[1] + down]
            points[place[0]] = place[1]
    expected = {n: round((1 - value) * 40) for n, value in enumerate(values) if not math.isnan(value)}
    assert points == expected


def test_an_envelope_holds_every_value_and_ticks_are_round():
    seconds = np.sin(np.arange(1000) / 30) * 10 + 90
    seconds[400:450] = np.nan
    shape = envelope(Scale(0, 1000, 0, 100), Scale(80, 100, 100, 0), seconds, 100)
    numbers = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", shape), float)
    assert shape.count("M") == 2 == shape.count("Z") and numbers[:, 1].min() <= 0.5 and numbers[:, 1].max() >= 99.5
    assert not ((numbers[:, 0] > 40.5) & (numbers[:, 0] < 44.5)).any()
    assert ticks(0, 1, 6) == [0, 0.2, 0.4, 0.6, 0.8, 1] and ticks(85, 100, 4) == [85, 90, 95, 100] and ticks(3, 3, 5) == [3]


@pytest.mark.parametrize(
    ("begin", "expected"),
    [("22:41:30", [(1110.0, "23:00"), (4710.0, "00:00")]), ("", [(0.0, "0 h"), (3600.0, "1 h"), (7200.0, "2 h")])],
)
def test_the_time_axis_has_round_hours_of_the_day_or_from_the_start(begin, expected):
    assert time_ticks(clock_of(None, begin or None), 7200.0, 3) == expected


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
