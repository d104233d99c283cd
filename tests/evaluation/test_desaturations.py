"""Desaturations by rule: hand-made falls, an independent count, dropouts that are never 0 %, and synthetic nights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.evaluation.desaturations import (
    BRIDGED,
    LONGEST,
    Desaturation,
    find_desaturations,
    read_saturation,
    summarise_oximetry,
)


def fall(depth: float, down: int = 15, up: int = 10, level: float = 97.0) -> list[float]:
    """A fall of whole per cents over ``down`` s and its recovery over ``up`` s."""
    return [level - round(depth * s / down) for s in range(down)] + [level - round(depth * (1 - s / up)) for s in range(up + 1)]


def test_a_fall_is_told_from_its_highest_to_its_lowest_second():
    saturation = [97.0] * 60 + fall(4) + [97.0] * 60
    (found,) = find_desaturations(saturation)
    values = np.array(saturation)
    assert (found.depth, found.nadir) == (4.0, 93.0)
    assert found.onset == np.flatnonzero(values[:75] == 97)[-1] and found.end == np.flatnonzero(values == 93)[0]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_smaller_falls_are_none(depth):
    assert find_desaturations([97.0] * 60 + fall(depth) + [97.0] * 60) == ()


def test_a_drift_of_the_baseline_is_none_and_a_fall_on_it_is_one():
    drift = np.round(np.linspace(98, 90, 8 * 60 * 3))
    assert find_desaturations(drift) == ()
    drift[700:720] -= 4
    assert [found.depth >= 4 for found in find_desaturations(drift)] == [True]


def test_partial_recovery_by_the_criterion_parts_two_falls():
    twice = [97.0] * 30 + fall(6)[:15] + [91.0, 92.0, 93.0, 94.0] + [94.0] * 5 + [93.0, 92.0, 91.0, 90.0] * 1 + [90.0] * 9
    found = find_desaturations([*twice, 97.0, 97.0])
    assert [(f.depth, f.nadir) for f in found] == [(6.0, 91.0), (4.0, 90.0)]
    flicker = [97.0] * 30 + fall(6)[:15] + [91.0, 92.0, 93.0, 92.0, 91.0, 90.0] + [97.0] * 20
    assert [f.nadir for f in find_desaturations(flicker)] == [90.0]


def test_a_spike_of_a_few_seconds_is_none():
    assert find_desaturations([97.0] * 60 + [93.0] * 5 + [97.0] * 60) == ()


def test_dropouts_part_a_night_and_short_ones_do_not():
    night = np.array([97.0] * 60 + fall(5) + [97.0] * 60)
    for length, number in ((BRIDGED - 1, 1), (60, 0)):
        gone = night.copy()
        gone[66 : 66 + length] = np.nan
        assert len(find_desaturations(gone)) == number, length
    assert find_desaturations(np.full(100, np.nan)) == () == find_desaturations([])


def slow_rule(values: np.ndarray, criterion: float) -> list[tuple[int, int]]:
    """The rule once more, for nights without dropouts: looks back over all seconds anew at every second."""
    found, second, free_from = [], 0, 0
    while second < len(values):
        window = range(max(free_from, second - LONGEST), second + 1)
        onset = max(window, key=lambda s: (values[s], s))
        if values[onset] - values[second] < criterion:
            second += 1
            continue
        lowest = end = second
        while end < len(values):
            in_time = end - onset <= LONGEST
            if values[end] < values[lowest] and in_time:
                lowest = end
            elif values[end] >= min(values[onset] - 1, values[lowest] + criterion) or not in_time:
                break
            end += 1
        if min(end, len(values) - 1) - onset >= 10:
            found.append((onset, lowest))
        free_from = second = end
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=20, max_size=400), st.sampled_from([3.0, 4.0]), st.integers(1, 9))
def test_the_rule_is_that_of_a_slow_count(steps, criterion, hold):
    values = np.repeat(np.clip(95 + np.cumsum(steps), 70, 100), hold).astype(float)
    assert [(int(f.onset), int(f.end)) for f in find_desaturations(values, criterion)] == slow_rule(values, criterion)


def test_seconds_that_no_finger_gave_are_unscored_and_never_nought():
    samples = np.full((4, 3000), 96.0, np.float32)
    samples[0, :500] = 0.0
    samples[1, 1000:1200] = 80.0
    samples[2] = 20.0
    unusable = np.array([False, False, False, True])
    seconds = read_saturation(samples.reshape(-1), unusable)
    assert np.isnan(seconds[:5]).all() and (seconds[5:30] == 96).all()
    # A change of 16 % within a second is no blood's: both of its sides go.
    assert np.isnan(seconds[[39, 40, 41, 42]]).all()
    assert np.isnan(seconds[60:]).all()
    figures = summarise_oximetry(seconds, (), [True] * 4)
    assert figures.nadir == 96 and figures.t90_percent == 0 and figures.hours == pytest.approx(51 / 3600)
    nothing = summarise_oximetry(seconds, (), [False, False, True, True])
    assert nothing.hours == 0 and all(math.isnan(v) for name, v in vars(nothing).items() if name != "hours")


def test_indices_are_per_hour_of_scored_sleep():
    seconds = np.full(30 * 120, 95.0)
    seconds[:1800] = 89.0
    seconds[1800:2400] = np.nan
    asleep = np.arange(120) < 100  # 3000 s, of which 600 unscored
    falls = (Desaturation(100, 20, 3.0, 89), Desaturation(2500, 20, 4.5, 89), Desaturation(3200, 20, 9.0, 86))
    figures = summarise_oximetry(seconds, falls, asleep)
    assert figures.hours == pytest.approx(2400 / 3600)
    assert (figures.odi_3, figures.odi_4) == (pytest.approx(3.0), pytest.approx(1.5))
    assert figures.t90_percent == pytest.approx(75) and figures.t90_minutes == 30
    assert figures.mean == pytest.approx((1800 * 89 + 600 * 95) / 2400)


def test_falls_of_synthetic_nights_are_those_that_their_scorer_has(tmp_path):
    """The scorer looks after respiratory events, the rule at SpO2 alone."""
    from sleepfm.inference.scorer import prepare_night
    from sleepfm.signals.quality import unusable
    from sleepfm.synthetic.cohort import write_cohort

    scored = matched = found_in_all = 0
    for path in write_cohort(tmp_path, subjects=2, hours=1.0, seed=5, cohort="mesa"):
        night = prepare_night(path)
        saturation = read_saturation(night.channels["SPO2"], unusable(night.quality["SPO2"]))
        found = find_desaturations(saturation)
        found_in_all += len(found)
        for event in night.events:
            if event.type == "desaturation":
                scored += 1
                matched += any(f.onset < event.onset + event.duration + 5 and event.onset < f.end + 5 for f in found)
    assert scored >= 20 and matched >= 0.9 * scored and found_in_all <= 1.2 * scored
