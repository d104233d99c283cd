"""Figures of events over nights: overlaps, errors of onset and duration, intervals, and what lies in epochs that do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sleepfm.evaluation.event_figures import ComparedNight, agreement_of, agreement_of_nights, event_metrics, told_kinds
from sleepfm.evaluation.events import EventAgreement, match_events
from sleepfm.signals.scorings.scoring import Event


def events(*spans):
    return tuple(Event(float(onset), float(duration), "apnea") for onset, duration in spans)


def night(detected, scored, epochs=None, subject="a", asleep=None, record="r"):
    flags = np.ones(40, bool) if epochs is None else np.array(epochs, bool)
    return ComparedNight(record, subject, events(*detected), events(*scored), flags, asleep)


def drawn_nights(people=12, seed=0, per_person=2):
    rng = np.random.default_rng(seed)
    found = []
    for person in range(people):
        for visit in range(per_person):
            onsets = np.cumsum(rng.uniform(20, 60, 15))
            scored = [(o, rng.uniform(10, 18)) for o in onsets]
            detected = [(o + rng.normal(1, 2), d + rng.normal(2, 3)) for o, d in scored if rng.random() < 0.5 + person / 30]
            found.append(night(detected, scored, subject=f"p{person}", record=f"{person}-{visit}"))
    return found


def test_figures_of_a_night_counted_by_hand():
    # Found 2 s late and 4 s long (IoU 18/24 = 0.75), found 8 s late (12/28 = 0.43), missed; and one that is none.
    found = event_metrics([night([(102, 24), (208, 20), (500, 15)], [(100, 20), (200, 20), (300, 20)])], n_boot=20)
    assert found["f1_iou_0.2"].value == pytest.approx(4 / 6) and found["f1_iou_0.5"].value == pytest.approx(2 / 6)
    assert found["precision_iou_0.2"].value == found["recall_iou_0.2"].value == pytest.approx(2 / 3)
    assert (found["onset_error_s"].value, found["duration_error_s"].value) == (5.0, 2.0)
    assert (found["onset_bias_s"].value, found["duration_bias_s"].value) == (5.0, 2.0)
    assert "one subject" in found["f1_iou_0.5"].note and math.isnan(found["f1_iou_0.5"].ci_low)
    early = event_metrics([night([(90, 20), (212, 20)], [(100, 20), (200, 20)])], n_boot=0)
    assert (early["onset_error_s"].value, early["onset_bias_s"].value) == (11.0, 1.0)


def test_intervals_of_events_equal_resampling_nights_of_people_by_hand():
    nights = drawn_nights()
    got = event_metrics(nights, n_boot=80, seed=5)
    people = sorted({n.subject for n in nights})
    counts = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 80)
    f1, onset = [], []
    for count in counts:
        taken = [
            n for person, times in zip(people, count, strict=True) for n in nights if n.subject == person for _ in range(times)
        ]
        f1.append(agreement_of_nights(taken, 0.5)[0].f1)
        onset.append(np.abs(agreement_of_nights(taken)[1][:, 0]).mean())
    for name, values in {"f1_iou_0.5": f1, "onset_error_s": onset}.items():
        assert [got[name].ci_low, got[name].ci_high] == pytest.approx(list(np.percentile(values, [2.5, 97.5]))), name
    assert got["f1_iou_0.5"].value == pytest.approx(agreement_of_nights(nights, 0.5)[0].f1)
    few = event_metrics(nights[:6], n_boot=80)["f1_iou_0.2"]
    assert "3 people only" in few.note and got["f1_iou_0.2"].note == ""


def test_what_lies_in_excluded_epochs_is_in_no_figure_of_events():
    """Epochs 4 to 7 (120 to 240 s) are excluded."""
    flags = [True] * 4 + [False] * 4 + [True] * 32
    # A missed one, a false one and a matched one well inside; one that only reaches in from outside.
    inside = night([(150, 20), (200, 20)], [(151, 20), (180, 15)], flags)
    assert agreement_of(inside)[0] == EventAgreement(0, 0, 0) and len(agreement_of(inside)[1]) == 0
    # Overlapping the edge is not enough: 3 of 20 s lie in epochs that count.
    assert agreement_of(night([], [(117, 20)], flags))[0] == EventAgreement(0, 0, 0)
    assert agreement_of(night([(117, 20)], [], flags))[0] == EventAgreement(0, 0, 0)
    # A human's event that counts is found, though the model's lies mostly beyond the edge.
    assert agreement_of(night([(112, 20)], [(107, 20)], flags))[0] == EventAgreement(1, 0, 0)
    # And a model's event of a human's that does not count is not false.
    assert agreement_of(night([(107, 20)], [(112, 20)], flags))[0] == EventAgreement(0, 0, 0)
    everywhere = night([(150, 20), (200, 20)], [(151, 20), (180, 15)])
    assert agreement_of(everywhere)[0] == match_events(everywhere.detected, everywhere.scored) == EventAgreement(1, 1, 1)


def test_events_per_hour_are_of_the_sleep_that_both_scored():
    asleep = np.zeros(40, bool)
    asleep[:20] = True
    flags = np.ones(40, bool)
    flags[:8] = False
    found = night([(250, 20), (300, 20), (900, 20)], [(10, 20), (250, 20)], flags, asleep=asleep)
    assert found.indices() == (10.0, 20.0)
    assert all(math.isnan(value) for value in night([], []).indices())
    assert all(math.isnan(value) for value in night([], [], asleep=np.zeros(40, bool)).indices())


def test_figures_without_events_are_undefined_with_the_reason():
    found = event_metrics([night([], [], subject=s) for s in "ab"], n_boot=10)
    assert all(math.isnan(metric.value) for metric in found.values())
    assert found["f1_iou_0.2"].note == "no event was scored or detected" and found["onset_error_s"].note == "no event was matched"
    assert all(math.isnan(metric.value) for metric in event_metrics([], n_boot=10).values())


KINDS = ("obstructive_apnea", "central_apnea", "mixed_apnea")
OBSTRUCTIVE, CENTRAL, MIXED = KINDS


def of_kinds(told, scored, subject="a", excluded=()):
    """A night of events a minute apart, the same spans on both sides."""
    flags = np.ones(2 * len(told) + 2, bool)
    flags[[2 * number for number in excluded]] = False
    first, second = (tuple(Event(60.0 * n, 15.0, kind) for n, kind in enumerate(side) if kind) for side in (told, scored))
    return ComparedNight(subject, subject, first, second, flags, None, KINDS)


def test_kinds_of_matched_events_are_counted_by_hand():
    told = [OBSTRUCTIVE, OBSTRUCTIVE, CENTRAL, CENTRAL, MIXED, OBSTRUCTIVE, "", CENTRAL, CENTRAL]
    scored = [OBSTRUCTIVE, CENTRAL, CENTRAL, CENTRAL, OBSTRUCTIVE, "apnea", CENTRAL, "", OBSTRUCTIVE]
    # The last is in an epoch that does not count; "apnea" has no kind; the two before it are missed and false.
    night = of_kinds(told, scored, excluded=[8])
    assert told_kinds(night).tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 0]]
    found = event_metrics([night], n_boot=0)
    assert found["kind_accuracy"].value == pytest.approx(3 / 5)
    assert found[f"kind_recall_{OBSTRUCTIVE}"].value == pytest.approx(1 / 2)
    assert found[f"kind_recall_{CENTRAL}"].value == pytest.approx(2 / 3)
    mixed = found[f"kind_recall_{MIXED}"]
    assert math.isnan(mixed.value) and "mixed_apnea" in mixed.note
    # An event that is missed or has no kind is no event of a wrong kind, and stays in F1.
    assert found["recall_iou_0.2"].value == pytest.approx(6 / 7)


def test_intervals_of_kinds_are_over_people():
    rng = np.random.default_rng(3)
    nights = [
        of_kinds(rng.choice(KINDS, 30).tolist(), rng.choice(KINDS[:2], 30).tolist(), subject=f"p{person}") for person in range(12)
    ]
    got = event_metrics(nights, n_boot=60, seed=5)["kind_accuracy"]
    tables = np.array([told_kinds(n) for n in sorted(nights, key=lambda n: n.subject)])
    drawn = [
        np.trace(total) / total.sum()
        for total in (
            (count[:, None, None] * tables).sum(0) for count in np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 60)
        )
    ]
    assert [got.ci_low, got.ci_high] == pytest.approx(list(np.percentile(drawn, [2.5, 97.5])))


def test_a_model_that_tells_no_kinds_has_no_figure_of_them():
    assert not any(name.startswith("kind") for name in event_metrics(drawn_nights(), n_boot=0))
