"""The kind of an event from its seconds, and how long events of a type last at least."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm.evaluation.event_kinds import tell_kinds
from sleepfm.evaluation.events import events_from_seconds
from sleepfm.signals.scorings.scoring import Event

KINDS = ("obstructive_apnea", "central_apnea")


def test_the_mean_over_an_events_seconds_decides():
    chances = np.full((100, 2), 0.5)
    chances[10:15], chances[15:20] = (0.1, 0.9), (0.8, 0.2)
    chances[40:60] = np.nan
    chances[55:60] = (0.9, 0.1)
    events = (Event(10, 10, "apnea"), Event(40, 20, "apnea"), Event(40, 15, "apnea"))
    central, obstructive, unknown = tell_kinds(events, chances, KINDS)
    assert central == Event(10, 10, "central_apnea") and obstructive == Event(40, 20, "obstructive_apnea")
    assert unknown == Event(40, 15, "apnea")


@pytest.mark.parametrize(("kind", "shortest"), [("apnea", 10), ("hypopnea", 10), ("arousal", 3)])
def test_events_last_as_long_as_the_manual_asks(kind, shortest):
    for length in (shortest - 1, shortest):
        probability = np.zeros(60)
        probability[20 : 20 + length] = 0.9
        assert len(events_from_seconds(probability, 0.5, kind)) == (length == shortest)
