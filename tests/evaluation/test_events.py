from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from sleepfm.evaluation.breathing import KINDS, count_breathing
from sleepfm.evaluation.events import (
    EventAgreement,
    ahi,
    event_family,
    events_from_seconds,
    join_overlapping,
    match_events,
    matched_pairs,
    mostly_within,
    positive_runs,
    runs_of_epochs,
    timing_of,
)
from sleepfm.evaluation.sleep_statistics import sleep_statistics
from sleepfm.signals.scorings.scoring import Event
from sleepfm.stages.second_labels import covered_seconds


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_runs_of_epochs_and_back(positive):
    events = runs_of_epochs(positive, "apnea")
    painted = [False] * len(positive)
    for event in events:
        first, n = event.onset / 30, event.duration / 30
        assert first == int(first) and n == int(n) and n > 0 and event.type == "apnea"
        for epoch in range(int(first), int(first + n)):
            assert not painted[epoch]
            painted[epoch] = True
    assert painted == positive
    assert len(events) == sum(1 for value, _ in itertools.groupby(positive) if value)


def test_threshold_is_inclusive_and_unscorable_epochs_are_in_no_run():
    events = positive_runs([0.1, 0.5, 0.7, math.nan, 0.9], 0.5, "hypopnea")
    assert [(e.onset, e.duration) for e in events] == [(30.0, 60.0), (120.0, 30.0)]


respiratory = st.lists(
    st.tuples(
        st.integers(0, 900),
        st.integers(1, 90),
        st.sampled_from(["central_apnea", "apnea", "hypopnea", "arousal", "desaturation"]),
    ),
    max_size=12,
)


def events_of(rows):
    return [Event(float(onset), float(duration), kind) for onset, duration, kind in rows]


def share(first, second):
    return min(first.onset + first.duration, second.onset + second.duration) - max(first.onset, second.onset)


def seconds_of(events):
    return {second for e in events for second in range(int(e.onset), int(e.onset + e.duration))}


@settings(max_examples=300, deadline=None)
@given(respiratory)
def test_a_hypopnea_that_overlaps_an_apnea_is_no_event_of_its_own(rows):
    events = events_of(rows)
    apneas = [e for e in events if event_family(e.type) == "apnea"]
    alone = [e for e in events if e.type == "hypopnea" and all(share(e, a) <= 0 for a in apneas)]
    got = join_overlapping(events)
    assert list(got) == sorted(got, key=lambda e: (e.onset, e.type)) and join_overlapping(got) == got
    assert sorted(e.type for e in got if e.type != "hypopnea") == sorted(e.type for e in events if e.type != "hypopnea")
    assert sorted((e for e in got if e.type == "hypopnea"), key=repr) == sorted(alone, key=repr)
    others = [sorted((e for e in some if e.type in ("desaturation", "arousal")), key=repr) for some in (got, events)]
    assert others[0] == others[1]
    family = {kind: [e for e in events if event_family(e.type) == kind] for kind in KINDS}
    mine = {kind: [e for e in got if event_family(e.type) == kind] for kind in KINDS}
    assert all(share(a, h) <= 0 for a in mine["apnea"] for h in mine["hypopnea"])
    assert seconds_of(family["apnea"]) <= seconds_of(mine["apnea"]) <= seconds_of(family["apnea"] + family["hypopnea"])
    assert all(any(share(a, m) == a.duration and a.type == m.type for m in mine["apnea"]) for a in apneas)


def test_joined_events_last_from_the_first_onset_to_the_last_end():
    got = join_overlapping(
        events_of([(100, 20, "obstructive_apnea"), (90, 25, "hypopnea"), (115, 30, "hypopnea"), (200, 9, "hypopnea")])
    )
    assert got == (Event(90.0, 55.0, "obstructive_apnea"), Event(200.0, 9.0, "hypopnea"))
    between = events_of([(0, 20, "apnea"), (10, 50, "hypopnea"), (40, 20, "apnea")])
    assert join_overlapping(between) == (Event(0.0, 20.0, "apnea"), Event(20.0, 40.0, "apnea"))


@settings(max_examples=100, deadline=None)
@given(respiratory, st.lists(st.integers(-1, 4), min_size=1, max_size=30), st.data())
def test_breathing_equals_the_slow_count(rows, stages, data):
    """Both kinds told to the second; every epoch scored for them or not."""
    events = join_overlapping([e for e in events_of(rows) if event_family(e.type) in KINDS])
    flags = st.lists(st.booleans(), min_size=len(stages), max_size=len(stages))
    scored = {kind: data.draw(flags) for kind in KINDS}
    got = count_breathing(stages, events, (), scored, KINDS)

    def slow(kinds, needed):
        counted = [e for e, stage in enumerate(stages) if stage >= 1 and all(scored[k][e] for k in needed)]
        mine = [event for event in events if event_family(event.type) in kinds]
        inside = [m for m in mine if any(m.onset < 30 * (e + 1) and m.onset + m.duration > 30 * e for e in counted)]
        return len(mine), len(inside), (len(inside) / (len(counted) / 120) if counted else math.nan)

    staged = any(stage >= 0 for stage in stages)
    for kind in KINDS:
        row = got.of(kind)
        found, asleep, per_hour = slow([kind], [kind])
        assert (row.found, row.asleep) == (found, asleep if staged else None)
        assert row.per_hour == pytest.approx(per_hour, nan_ok=True)
    assert got.ahi == pytest.approx(slow(KINDS, KINDS)[2], nan_ok=True)
    hours = sum(stage >= 1 and all(scored[k][e] for k in KINDS) for e, stage in enumerate(stages)) / 120
    assert got.hours == pytest.approx(hours if staged else math.nan, nan_ok=True)
    asleep = [stage >= 1 and all(scored[k][e] for k in KINDS) for e, stage in enumerate(stages)]
    assert ahi(events_of(rows), asleep) == pytest.approx(got.ahi, nan_ok=True)


def test_what_was_not_scored_is_null_and_runs_of_epochs_are_no_events():
    runs = runs_of_epochs([0, 1, 1, 0, 1], "apnea")
    nothing = count_breathing([2] * 5, (), (), {}, ())
    assert nothing.counted == () and nothing.definitions == () and str(nothing) == ""
    assert not any(value for key, value in nothing.to_json().items() if key not in ("ahi", "hours_of_scored_sleep"))
    assert math.isnan(nothing.ahi) and math.isnan(nothing.hours)

    by_epoch = count_breathing([2, 2, 2, 0, 0], (), runs, {"apnea": [True] * 5}, ())
    content = by_epoch.to_json()
    assert (content["apneas"], content["apnea_index"], content["hypopneas"]) == (None, None, None)
    assert (content["apnea_positive_runs"], content["apnea_positive_runs_in_sleep"]) == (2, 1)
    assert content["apnea_positive_runs_per_hour"] == pytest.approx(1 / (90 / 3600)) and math.isnan(content["ahi"])
    assert content["hypopnea_positive_runs"] is None
    assert str(by_epoch) == "40.0 positive runs of apnea per hour of sleep"
    assert len(by_epoch.definitions) == 1 and "no AHI" in by_epoch.definitions[0]

    unstaged = count_breathing([-1] * 5, events_of([(40, 20, "apnea")]), (), {"apnea": [True] * 5, "hypopnea": [True] * 5}, KINDS)
    assert (unstaged.of("apnea").found, unstaged.of("apnea").asleep, unstaged.of("hypopnea").found) == (1, None, 0)
    assert (
        math.isnan(unstaged.ahi) and str(unstaged) == "AHI undefined" and "run is no event" not in " ".join(unstaged.definitions)
    )


def test_an_overlapping_apnea_and_hypopnea_count_once():
    events = events_of([(40, 20, "apnea"), (45, 30, "hypopnea"), (100, 15, "hypopnea")])
    assert ahi(events, [True] * 120) == 2.0
    assert ahi(events, [False, False, False, True] + [False] * 116) == 120.0


def overlaps(detected, scored, min_iou):
    """Intersection over union [N, M], 0 below ``min_iou``, from the whole table."""
    table = np.zeros((len(detected), len(scored)))
    for i, a in enumerate(detected):
        for j, b in enumerate(scored):
            inter = min(a.onset + a.duration, b.onset + b.duration) - max(a.onset, b.onset)
            iou = inter / (a.duration + b.duration - inter)
            table[i, j] = iou if inter > 0 and iou >= min_iou else 0.0
    return table


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=9)


@settings(max_examples=300, deadline=None)
@given(spans, spans, st.sampled_from([0.01, 0.2, 0.5, 1.0]))
def test_matching_is_the_maximum_matching_of_the_whole_table(first, second, min_iou):
    """As many pairs as scipy's maximum bipartite matching (``mir_eval`` counts so), and of all such the best overlaps."""
    detected = [Event(float(a), float(d), "apnea") for a, d in first]
    scored = [Event(float(a), float(d), "apnea") for a, d in second]
    got, table = match_events(detected, scored, min_iou), overlaps(detected, scored, min_iou)
    most = 0
    if table.size:
        most = int((maximum_bipartite_matching(csr_matrix(table > 0), perm_type="column") >= 0).sum())
    assert got == EventAgreement(most, len(scored) - most, len(detected) - most)
    pairs = matched_pairs(detected, scored, min_iou)
    assert len(pairs) == most and all(table[i, j] > 0 for i, j in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == most
    if table.size:
        best = linear_sum_assignment(np.where(table > 0, 100 + table, 0), maximize=True)
        assert sum(table[i, j] for i, j in pairs) == pytest.approx(table[best].sum())
    back = match_events(scored, detected, min_iou)
    assert (back.matched, back.missed, back.false) == (got.matched, got.false, got.missed)
    assert match_events(scored, scored, min_iou).f1 == 1.0 or not scored


def test_an_event_that_two_others_want_goes_where_both_find_one():
    """The greatest overlap first would leave one of them alone."""
    detected, scored = events_of([(0, 30, "apnea"), (25, 30, "apnea")]), events_of([(0, 22, "apnea"), (10, 32, "apnea")])
    assert match_events(detected, scored) == EventAgreement(2, 0, 0)
    assert matched_pairs(detected[::-1], scored) == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("onset", "duration", "flags", "within"),
    [
        (20, 20, [1, 0], True),
        (21, 20, [1, 0], False),
        (20, 20, [0, 1], True),
        (10, 60, [1, 0, 1], True),
        (10, 60, [0, 1, 0], True),
        (40, 20, [1, 0], False),
        (70, 10, [1, 1], False),
        (50, 40, [0, 1], False),
    ],
)
def test_an_event_belongs_to_the_epochs_in_which_half_of_it_lies(onset, duration, flags, within):
    assert mostly_within(Event(float(onset), float(duration), "apnea"), flags) is within


def test_agreement_adds_up_and_is_undefined_without_events():
    total = EventAgreement(3, 1, 2) + EventAgreement(1, 0, 0)
    assert (total.precision, total.recall) == (4 / 6, 4 / 5)
    assert total.f1 == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    nothing = match_events([], [])
    assert all(math.isnan(v) for v in (nothing.f1, nothing.precision, nothing.recall))


def test_sleep_statistics_of_a_night_counted_by_hand():
    #          ?   W  W  N1 N2 W  N2 N3 REM ?  REM W  W  ?   ?
    stages = [-1, 0, 0, 1, 2, 0, 2, 3, 4, -1, 4, 0, 0, -1, -1]
    got = sleep_statistics(stages)
    assert (got.recorded, got.time_in_bed, got.total_sleep_time) == (7.5, 6.0, 3.0)
    assert got.latency == 1.0 and got.rem_latency == 2.5
    # The last Wake belongs to it, as the AASM has it; the unscored epoch does not.
    assert got.waso == 1.5 == got.time_in_bed - got.latency - got.total_sleep_time - got.unscored_in_bed
    assert got.awakenings == 1 and (got.unscored, got.unscored_in_bed) == (2.0, 0.5)
    assert got.efficiency == pytest.approx(100 * 3 / 6)
    assert got.stage_minutes == {"W": 2.5, "N1": 0.5, "N2": 1.0, "N3": 0.5, "REM": 1.0}
    assert sum(got.stage_percent.values()) == pytest.approx(100)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-1, 4), max_size=40), st.integers(0, 9), st.integers(0, 9))
def test_sleep_statistics_add_up_and_dead_time_about_a_night_changes_none(stages, before, after):
    got = sleep_statistics(stages)
    wide = sleep_statistics([-1] * before + stages + [-1] * after)
    for name in ("time_in_bed", "total_sleep_time", "efficiency", "latency", "rem_latency", "waso", "unscored_in_bed"):
        assert getattr(wide, name) == pytest.approx(getattr(got, name), nan_ok=True), name
    assert wide.awakenings == got.awakenings and wide.unscored == got.unscored + (before + after) / 2
    assert got.recorded == len(stages) / 2
    scored = [e for e, stage in enumerate(stages) if stage >= 0]
    if not scored:
        assert all(math.isnan(value) for value in (got.time_in_bed, got.total_sleep_time, got.efficiency, got.stage_minutes["W"]))
        assert got.awakenings is None
        return
    assert got.recorded == got.time_in_bed + got.unscored - got.unscored_in_bed
    assert sum(got.stage_minutes.values()) == got.time_in_bed - got.unscored_in_bed
    if got.total_sleep_time:
        onset = next(e for e, stage in enumerate(stages) if stage > 0)
        hidden = sum(stage < 0 for stage in stages[onset : scored[-1]]) / 2
        assert got.waso == pytest.approx(got.time_in_bed - got.latency - got.total_sleep_time - hidden)
        assert got.latency == (onset - scored[0]) / 2
        letters = "".join("s" if s > 0 else "w" for s in stages if s >= 0).strip("w")
        assert got.awakenings == sum(1 for key, _ in itertools.groupby(letters) if key == "w")


def test_sleep_statistics_without_sleep():
    got = sleep_statistics(np.zeros(4, np.int8))
    assert got.total_sleep_time == 0 and got.efficiency == 0 and math.isnan(got.latency) and math.isnan(got.waso)
    assert got.awakenings == 0 and all(math.isnan(value) for value in got.stage_percent.values())


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
    pairs = sorted(matched_pairs(detected, scored), key=lambda pair: pair[1])
    assert timing_of([(detected[i], scored[j]) for i, j in pairs]).tolist() == [[-1, 2], [3, -5]]
    assert timing_of([]).shape == (0, 2)


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
