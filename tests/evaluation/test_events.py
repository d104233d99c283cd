from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.evaluation.events import (
    EventAgreement,
    ahi,
    events_from_epochs,
    events_from_probability,
    match_events,
    respiratory_index,
    timing_errors,
)
from sleepfm.evaluation.night import sleep_statistics
from sleepfm.evaluation.seconds import covered_seconds, events_from_seconds
from sleepfm.signals.annotations import Event


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_runs_of_epochs_become_events_and_back(positive):
    events = events_from_epochs(positive, "apnea")
    painted = [False] * len(positive)
    for event in events:
        first, n = event.onset / 30, event.duration / 30
        assert first == int(first) and n == int(n) and n > 0 and event.type == "apnea"
        for epoch in range(int(first), int(first + n)):
            assert not painted[epoch]
            painted[epoch] = True
    assert painted == positive
    assert len(events) == sum(1 for value, _ in itertools.groupby(positive) if value)


def test_threshold_is_inclusive_and_unscorable_epochs_are_no_events():
    events = events_from_probability([0.1, 0.5, 0.7, math.nan, 0.9], 0.5, "hypopnea")
    assert [(e.onset, e.duration) for e in events] == [(30.0, 60.0), (120.0, 30.0)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 900),
            st.floats(1, 90),
            st.sampled_from(["central_apnea", "apnea", "hypopnea", "arousal"]),
        ),
        max_size=12,
    ),
    st.lists(st.integers(-1, 4), min_size=1, max_size=30),
)
def test_ahi_equals_the_slow_count(rows, stages):
    events = [Event(*row) for row in rows]
    asleep = [s >= 1 for s in stages]
    count = 0
    for event in events:
        if event.type == "arousal":
            continue
        end = event.onset + event.duration
        count += any(asleep[e] and event.onset < 30 * (e + 1) and end > 30 * e for e in range(len(stages)))
    if any(asleep):
        assert ahi(events, stages) == pytest.approx(count / (sum(asleep) / 120))
        split = [respiratory_index(events, stages, [k]) for k in ("central_apnea", "apnea", "hypopnea")]
        assert sum(split) == pytest.approx(ahi(events, stages))
    else:
        assert math.isnan(ahi(events, stages))


def slow_match(detected, scored, min_iou):
    """Repeatedly take the best remaining pair of the whole table."""
    left = sorted((e.onset, e.onset + e.duration) for e in detected)
    right = sorted((e.onset, e.onset + e.duration) for e in scored)
    matched = 0
    while True:
        best = None
        for a in left:
            for b in right:
                inter = min(a[1], b[1]) - max(a[0], b[0])
                iou = inter / (a[1] - a[0] + b[1] - b[0] - inter)
                if inter > 0 and iou >= min_iou and (best is None or iou > best[0]):
                    best = (iou, a, b)
        if best is None:
            return EventAgreement(matched, len(right), len(left))
        left.remove(best[1])
        right.remove(best[2])
        matched += 1


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=9)


@settings(max_examples=300, deadline=None)
@given(spans, spans, st.sampled_from([0.01, 0.2, 0.5, 1.0]))
def test_matching_equals_the_slow_implementation(first, second, min_iou):
    detected = [Event(float(a), float(d), "apnea") for a, d in first]
    scored = [Event(float(a), float(d), "apnea") for a, d in second]
    got = match_events(detected, scored, min_iou)
    assert got == slow_match(detected, scored, min_iou)
    assert got.matched + got.missed == len(scored) and got.matched + got.false == len(detected)
    assert match_events(scored, scored, min_iou).f1 == 1.0 or not scored


def test_agreement_adds_up_and_is_undefined_without_events():
    total = EventAgreement(3, 1, 2) + EventAgreement(1, 0, 0)
    assert (total.precision, total.recall) == (4 / 6, 4 / 5)
    assert total.f1 == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    nothing = match_events([], [])
    assert all(math.isnan(v) for v in (nothing.f1, nothing.precision, nothing.recall))


def test_sleep_statistics_of_a_night_counted_by_hand():
    #          W  W  N1 N2 W  N2 N3 REM ?  REM W  W
    stages = [0, 0, 1, 2, 0, 2, 3, 4, -1, 4, 0, 0]
    got = sleep_statistics(stages)
    assert got.time_in_bed == 6.0 and got.total_sleep_time == 3.0
    assert got.latency == 1.0 and got.rem_latency == 2.5
    assert got.waso == 0.5 and got.awakenings == 1 and got.unscored == 0.5
    assert got.efficiency == pytest.approx(100 * 6 / 11)
    assert got.stage_minutes == {"W": 2.5, "N1": 0.5, "N2": 1.0, "N3": 0.5, "REM": 1.0}
    assert sum(got.stage_percent.values()) == pytest.approx(100)


def test_sleep_statistics_without_sleep():
    got = sleep_statistics(np.zeros(4, np.int8))
    assert got.total_sleep_time == 0 and got.efficiency == 0 and math.isnan(got.latency) and math.isnan(got.waso)
    assert math.isnan(sleep_statistics(np.full(4, -1)).efficiency)


def test_events_from_seconds_bridge_pauses_and_last_ten_seconds():
    seconds = np.zeros(120)
    seconds[5:14] = 0.9  # nine seconds alone are none
    seconds[40:46] = 0.9
    seconds[49:60] = 0.9  # a pause of three inside
    seconds[80:91] = 0.9
    seconds[95:106] = 0.9  # a pause of four between
    seconds[110:] = np.nan
    found = events_from_seconds(seconds, 0.5, "apnea")
    assert [(e.onset, e.duration) for e in found] == [(40, 20), (80, 11), (95, 11)]
    assert {e.type for e in found} == {"apnea"}


def test_timing_errors_are_those_of_matched_events():
    scored = [Event(10, 20, "apnea"), Event(100, 15, "apnea"), Event(300, 10, "apnea")]
    detected = [Event(103, 10, "apnea"), Event(9, 22, "apnea"), Event(500, 10, "apnea")]
    assert timing_errors(detected, scored).tolist() == [[-1, 2], [3, -5]]
    assert timing_errors([], scored).shape == (0, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 280), st.floats(0.5, 40)), max_size=5))
def test_covered_seconds_have_their_middle_in_an_event(spans):
    events = [Event(onset, duration, "apnea") for onset, duration in spans]
    covered = covered_seconds(events, 300)
    for second in range(300):
        middle = second + 0.5
        near = any(abs(middle - e.onset) < 1e-6 or abs(middle - e.onset - e.duration) < 1e-6 for e in events)
        if not near:
            assert covered[second] == any(e.onset < middle < e.onset + e.duration for e in events)
