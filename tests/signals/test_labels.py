"""Epoch labels against painting the night second by second."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sleepfm.signals.scorings.labels import LABEL_EVENTS, RULE_VERSION, describe_rule, event_labels, stage_labels, touched
from sleepfm.signals.scorings.scoring import Event, Scoring, StageInterval

N_EPOCHS = 12
EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(-300, 3900).map(lambda tenths: tenths / 10),
        st.integers(0, 900).map(lambda tenths: tenths / 10),
        st.sampled_from(["hypopnea", "obstructive_apnea"]),
    ),
    max_size=6,
)


def scoring(stages=(), events=(), has_events=True) -> Scoring:
    return Scoring(tuple(stages), tuple(events), "test", has_events)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200), st.integers(-1, 4)), max_size=8),
    st.integers(-140, 140).filter(lambda offset: offset % 2),
)
def test_stage_is_that_of_the_larger_part(runs, offset):
    """Ten painted samples a second; an odd offset keeps a stage change off the middle of an epoch."""
    night = np.full(N_EPOCHS * 300, -1)
    stages, at = [], offset
    for gap, length, stage in runs:
        at += gap * 10
        stages.append(StageInterval(at / 10, length * 10 / 10, stage))
        night[max(at, 0) : max(at + length * 10, 0)] = stage
        at += length * 10
    expected = [night[epoch * 300 + 150] for epoch in range(N_EPOCHS)]
    assert stage_labels(scoring(stages), N_EPOCHS).tolist() == expected


def test_whole_epochs_gaps_and_unscored():
    stages = [StageInterval(0, 60, 2), StageInterval(90, 30, 4), StageInterval(120, 30, -1), StageInterval(165, 30, 1)]
    assert stage_labels(scoring(stages), 7).tolist() == [2, 2, -1, 4, -1, 1, -1]
    assert stage_labels(None, 2).tolist() == [-1, -1]


def painted(events, kind) -> list[int]:
    """The rule in words, in tenths of seconds: a night's epochs one by one for each event, by counting the tenths it covers."""
    labels = [0] * N_EPOCHS
    for event in events:
        begin, end = round(event.onset * 10), round((event.onset + event.duration) * 10)
        tenths = [sum(epoch * 300 <= tenth < (epoch + 1) * 300 for tenth in range(begin, end)) for epoch in range(N_EPOCHS)]
        if event.type != kind:
            continue
        for epoch, count in enumerate(tenths):
            at = begin == end and epoch * 300 <= begin < (epoch + 1) * 300
            if at or count >= 100 or (count > 0 and count == max(tenths) and epoch == tenths.index(count)):
                labels[epoch] = 1
    return labels


@given(EVENTS)
def test_overlap_rule(events):
    assert event_labels(scoring(events=events), N_EPOCHS, ("hypopnea",)).tolist() == painted(events, "hypopnea")


@given(st.floats(-200, 400), st.floats(1e-3, 500))
def test_no_event_is_lost(onset, duration):
    """Whatever part of it lies in the recording."""
    end = min(onset + duration, N_EPOCHS * 30)
    assume(end - max(onset, 0) > 0)
    assert event_labels(scoring(events=[Event(onset, duration, "central_apnea")]), N_EPOCHS, ("central_apnea",)).any()


@pytest.mark.parametrize("seconds", [10, 15])
def test_short_events_across_two_epochs_label_the_one_that_holds_more(seconds):
    for onset in np.arange(30, 60, 0.25):
        labels = event_labels(scoring(events=[Event(onset, seconds, "hypopnea")]), 4, ("hypopnea",))
        inside = min(60 - onset, seconds)
        assert labels[1] == (inside >= min(10, seconds / 2)) and labels[2] == (seconds - inside > min(9.99, seconds / 2))
        assert labels.sum() >= 1


UNCLEAR = st.lists(st.builds(Event, st.floats(-50, 400), st.floats(0, 90), st.just("Unsure")), min_size=1, max_size=3)


@given(EVENTS, UNCLEAR, st.sampled_from(["overlap", "reference"]))
def test_what_is_not_understood_is_never_a_negative(events, unclear, rule):
    """Epochs that it touches keep what is certain and are unknown otherwise; those of arousals and the others stay."""
    plain, doubtful = scoring(events=events), Scoring((), tuple(events), "test", True, unclear=tuple(unclear))
    for types in (LABEL_EVENTS["apnea"], LABEL_EVENTS["hypopnea"]):
        before, after = (event_labels(item, N_EPOCHS, types, rule) for item in (plain, doubtful))
        for epoch in range(N_EPOCHS):
            low, high = epoch * 30, (epoch + 1) * 30
            touched = any(
                (e.onset < high and e.onset + e.duration > low)
                # Without a duration, or with one that its onset has no digits for.
                or (e.onset + e.duration == e.onset and low <= e.onset < high)
                for e in unclear
            )
            assert after[epoch] == (-1 if touched and before[epoch] == 0 else before[epoch])
    for types in (LABEL_EVENTS["arousal"], LABEL_EVENTS["desaturation"]):
        assert event_labels(doubtful, N_EPOCHS, types).tolist() == event_labels(plain, N_EPOCHS, types).tolist()


@pytest.mark.parametrize(
    ("onset", "duration", "expected"),
    [
        (0.0, 5e-324, [True, False, False]),
        (30.0, 5e-324, [False, True, False]),
        (30.0, 0.0, [False, True, False]),
        (math.nextafter(30.0, 0.0), 0.0, [True, False, False]),
        (math.nextafter(30.0, 0.0), 1.0, [True, True, False]),
        (0.0, math.nextafter(30.0, 60.0), [True, True, False]),
        (30.0, 30.0, [False, True, False]),
    ],
)
def test_what_an_event_touches_is_decided_at_the_border(onset, duration, expected):
    assert touched([Event(onset, duration, "Unsure")], 3, 30).tolist() == expected


def test_an_apnea_of_unknown_kind_is_an_apnea_and_no_other_kind_is_denied_by_it():
    night = scoring(events=[Event(65, 20, "apnea"), Event(125, 20, "central_apnea")])
    assert event_labels(night, 6, LABEL_EVENTS["apnea"]).tolist() == [0, 0, 1, 0, 1, 0]
    assert event_labels(night, 6, ("central_apnea",)).tolist() == [0, 0, -1, 0, 1, 0]
    assert event_labels(night, 6, LABEL_EVENTS["hypopnea"]).tolist() == [0] * 6


def test_every_rule_has_a_version_that_can_be_described():
    for rule, version in RULE_VERSION.items():
        assert "not known" not in describe_rule(rule, version)
    assert "may label none" in describe_rule("overlap", 1) and "not known" in describe_rule("overlap", 99)


@given(EVENTS)
def test_reference_rule_is_the_reference_loop(events):
    expected = np.zeros(N_EPOCHS, int)
    for event in events:
        for epoch in range(round(event.onset / 30), round((event.onset + event.duration) / 30)):
            if 0 <= epoch < N_EPOCHS:
                expected[epoch] = 1
    labels = event_labels(scoring(events=events), N_EPOCHS, ("hypopnea", "obstructive_apnea"), "reference")
    assert labels.tolist() == expected.tolist()


def test_reference_rule_loses_two_thirds_of_ten_second_events():
    starts = np.arange(0, 30, 0.01)
    lost = [not event_labels(scoring(events=[Event(s, 10, "hypopnea")]), 3, ("hypopnea",), "reference").any() for s in starts]
    assert np.mean(lost) == pytest.approx(2 / 3, abs=0.01)


def test_events_that_were_not_scored_are_unknown():
    assert event_labels(scoring(has_events=False), 3, ("hypopnea",)).tolist() == [-1, -1, -1]
    assert event_labels(None, 2, ("hypopnea",)).tolist() == [-1, -1]
