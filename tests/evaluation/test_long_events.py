"""Events that last longer than any should are told to the reader."""

from __future__ import annotations

from sleepfm.evaluation.stretches import long_event_warnings
from sleepfm.signals.scorings.scoring import Event


def test_an_event_of_more_than_three_minutes_is_told() -> None:
    usual = [Event(30.0, 180.0, "obstructive_apnea"), Event(300.0, 25.0, "hypopnea"), Event(400.0, 900.0, "desaturation")]
    assert long_event_warnings(usual, None) == []
    events = [*usual, Event(3600.0, 1799.0, "central_apnea"), Event(60.0, 200.0, "hypopnea"), Event(7200.0, 400.4, "hypopnea")]
    assert long_event_warnings(events, "22:30:00") == [
        "the models saw one apnea of 1,799 s (from 23:30:00); look at the signals there",
        "the models saw 2 hypopneas, the longest of 400 s (from 00:30:00); look at the signals there",
    ]
