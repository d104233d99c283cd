"""Epoch labels against painting the night second by second."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleepfm.signals.labels import event_labels, stage_labels
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval

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


@given(EVENTS)
def test_overlap_rule(events):
    labels = event_labels(scoring(events=events), N_EPOCHS, ("hypopnea",))
    for epoch in range(N_EPOCHS):
        low, high = epoch * 30, (epoch + 1) * 30
        shares = [(min(high, e.onset + e.duration) - max(low, e.onset), e) for e in events if e.type == "hypopnea"]
        holds = any(share > min(10, e.duration) - 1e-6 and (share > 0 or low <= e.onset < high) for share, e in shares)
        assert labels[epoch] == holds


@given(st.floats(0, 300), st.floats(20, 120))
def test_no_event_of_twenty_seconds_is_lost(onset, duration):
    events = [Event(onset, duration, "central_apnea")]
    assert event_labels(scoring(events=events), 20, ("central_apnea",)).any()


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
