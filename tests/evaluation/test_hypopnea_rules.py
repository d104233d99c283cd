"""One scoring, three indices: which hypopneas count by what follows them, and what is not known is no zero."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sleepfm.evaluation.desaturations import Desaturation
from sleepfm.evaluation.hypopnea_rules import (
    DEFINITIONS,
    Evidence,
    ahi_by_definition,
    breathing_events,
    find_evidence,
    hours_by_definition,
)
from sleepfm.signals.scorings.scoring import Event

SATURATION = np.full(30 * 120, 96.0)
EVENTS = (
    Event(100, 20, "obstructive_apnea"),
    Event(300, 20, "hypopnea"),
    Event(500, 20, "hypopnea"),
    Event(700, 20, "hypopnea"),
    Event(900, 20, "hypopnea"),
)
FALLS = (Desaturation(325, 15, 3.5, 92), Desaturation(510, 30, 5.0, 91))
AROUSALS = (Event(719, 6, "arousal"), Event(927, 6, "arousal"))
HOUR = [True] * 120


def indices(events=EVENTS, saturation=SATURATION, falls=FALLS, arousals=AROUSALS, oxygen=HOUR, waking=HOUR):
    evidence = find_evidence(events, saturation, falls, arousals, waking)
    return ahi_by_definition(events, dict(zip(events, evidence, strict=True)), HOUR, oxygen, waking)


def test_each_definition_counts_what_it_asks_for():
    # The apnea; hypopneas with 3.5 %, 5 %, an arousal; the last arousal comes 7 s after its hypopnea and is none of it.
    assert indices() == {"ahi_3_percent": 3.0, "ahi_3_percent_or_arousal": 4.0, "ahi_4_percent": 2.0}
    assert set(DEFINITIONS) == set(indices())


def test_what_was_never_scored_gives_no_index():
    found = indices(arousals=None, waking=None)
    assert math.isnan(found["ahi_3_percent_or_arousal"]) and found["ahi_3_percent"] == 3.0
    assert all(math.isnan(value) for value in indices(saturation=None, falls=(), oxygen=None).values())


def test_a_hypopnea_whose_saturation_was_not_scored_takes_its_epochs_out_of_the_hours():
    lost = SATURATION.copy()
    lost[900:1000] = np.nan
    found = indices(saturation=lost)
    # The last hypopnea lies in epoch 30: one of 120 epochs less, and no event less.
    assert found["ahi_3_percent"] == pytest.approx(3 * 120 / 119) and found["ahi_4_percent"] == pytest.approx(2 * 120 / 119)
    evidence = dict(zip(EVENTS, find_evidence(EVENTS, lost, FALLS, AROUSALS, HOUR), strict=True))
    assert hours_by_definition(EVENTS, evidence, HOUR, HOUR, HOUR) == pytest.approx(
        {"ahi_3_percent": 119 / 120, "ahi_3_percent_or_arousal": 119 / 120, "ahi_4_percent": 119 / 120}
    )
    nothing = indices(saturation=np.full(3600, np.nan), falls=())
    assert nothing["ahi_3_percent"] == pytest.approx(1 * 120 / 115) and nothing["ahi_3_percent_or_arousal"] > 1


def test_a_desaturation_is_that_of_the_last_event_before_it():
    row = (Event(0, 20, "hypopnea"), Event(32, 20, "hypopnea"))
    one, other = find_evidence(row, SATURATION, [Desaturation(30, 10, 4, 92), Desaturation(60, 10, 3, 93)], None)
    assert (one, other) == (Evidence(4, None), Evidence(3, None))
    # Whole per cents: the fall seems to begin before the event that it belongs to.
    early = find_evidence(row[1:], SATURATION, [Desaturation(30, 20, 4, 92)], None)
    assert early == (Evidence(4, None),)
    late = find_evidence(row[:1], SATURATION, [Desaturation(51, 10, 4, 92)], ())
    assert late == (Evidence(0.0, False),)


@pytest.mark.parametrize(
    ("depth", "arousal", "met"),
    [
        (None, None, (None, None, None)),
        (None, True, (None, True, None)),
        (None, False, (None, None, None)),
        (0.0, None, (False, None, False)),
        (0.0, False, (False, False, False)),
        (3.0, False, (True, True, False)),
        (4.0, None, (True, True, True)),
    ],
)
def test_unknown_is_neither_yes_nor_no(depth, arousal, met):
    assert tuple(Evidence(depth, arousal).meets(definition) for definition in DEFINITIONS) == met


def test_events_that_overlap_are_joined_before():
    joined = breathing_events((Event(0, 20, "apnea"), Event(10, 30, "hypopnea"), Event(100, 5, "arousal")))
    assert joined == (Event(0, 40, "apnea"),)
