"""Whole nights and their events against the human's, on the shards of a small cohort and on nights made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from told_predictions import whole

from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events
from sleepfm.errors import DatasetError
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import MOST_UNKNOWN_PER_HOUR, ahi
from sleepfm.evaluation.night_agreement import ahi_agreement, sleep_agreement
from sleepfm.evaluation.prediction_figures import best_event_threshold
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.sleep_statistics import sleep_statistics


@pytest.fixture(scope="module")
def told(dataset):
    return {task: whole(dataset, task, classes) for task, classes in (("stage", 5), ("apnea", 2), ("hypopnea", 2))}


def test_events_that_are_told_as_scored_agree_in_every_figure(dataset, told):
    got = EventResult.of(dataset, "hypopnea", told["hypopnea"], 0.5, resamples=50)
    events = [e for row in range(len(dataset)) for e in scored_events(dataset, ShardReader(dataset), row) if e.type == "hypopnea"]
    assert got.located and got.n_nights == len(dataset) and got.matches.matched == len(events) > 5
    assert (got.matches.missed, got.matches.false) == (0, 0)
    assert got.metrics["f1_iou_0.5"].value == 1.0 and got.metrics["onset_error_s"].value <= 0.5
    assert got.index.mae.value == 0.0 and got.index.icc.value == pytest.approx(1.0)
    assert "8 people only" in got.metrics["f1_iou_0.5"].note and "8 people only" in got.index.mae.note
    assert EventResult.from_dict(got.to_dict()).to_dict() == got.to_dict()
    flat = got.flat("val")
    assert flat["val/event_f1"] == flat["val/event_f1_iou_0.5"] == 1.0 and flat["val/event_index_mae"] == 0.0
    runs = EventResult.of(dataset, "hypopnea", replace(told["hypopnea"], seconds=None), 0.5, resamples=0)
    assert not runs.located and "val/positive_runs_f1_iou_0.2" in runs.flat("val") and runs.matches != got.matches


def test_epochs_without_a_figure_are_in_no_event_figure(dataset, told):
    predictions = told["hypopnea"]
    reader = ShardReader(dataset)
    row, event = next((r, e) for r in range(len(dataset)) for e in scored_events(dataset, reader, r) if e.type == "hypopnea")
    own = np.flatnonzero(predictions.record == dataset.names[row])
    around = own[int(event.onset // 30) : int((event.onset + event.duration) // 30) + 1]
    truth, probability = predictions.truth.copy(), predictions.probability.copy()
    before = EventResult.of(dataset, "hypopnea", predictions, 0.5, resamples=0)
    truth[around] = -1
    unscored = EventResult.of(dataset, "hypopnea", replace(predictions, truth=truth), 0.5, resamples=0)
    probability[around] = np.nan
    unusable = EventResult.of(dataset, "hypopnea", replace(predictions, probability=probability), 0.5, resamples=0)
    assert unscored.matches == unusable.matches
    assert unscored.matches.matched < before.matches.matched and (unscored.matches.missed, unscored.matches.false) == (0, 0)
    # Nor is what the model finds there false.
    seconds = predictions.seconds.copy()
    seconds[own] = 0.1
    seconds[around] = 0.9
    silent = EventResult.of(dataset, "hypopnea", replace(predictions, truth=truth, seconds=seconds), 0.5, resamples=0)
    assert silent.matches.false == 0


def test_the_threshold_of_events_is_the_one_of_their_best_f1_and_is_judged_by_their_index(dataset, told):
    predictions = told["hypopnea"]
    # What is none is said with 0.4, what is one with 0.62 for half of the nights.
    seconds = np.where(predictions.seconds > 0.5, 0.62, 0.4)
    steps = []
    found = best_event_threshold(dataset, "hypopnea", replace(predictions, seconds=seconds), 0.02, lambda: steps.append(1))
    assert 0.4 < found.value <= 0.62 and found.f1 == 1.0 and found.index_error == 0.0 and len(steps) == 49
    assert found.rule == "max F1 of events (overlap of at least 20%) on val"
    lowest = min(t for t in np.arange(0.02, 1, 0.02) if t > 0.4)
    assert found.value == pytest.approx(lowest)
    nothing = best_event_threshold(dataset, "hypopnea", replace(predictions, seconds=np.zeros_like(seconds)), 0.1)
    assert nothing.value == 0.5 and nothing.rule.startswith("default") and math.isnan(nothing.f1)


def test_the_ahi_of_the_models_against_the_humans(dataset, told):
    thresholds = dict.fromkeys(KINDS, 0.5)
    events = {kind: told[kind] for kind in KINDS}
    got = ahi_agreement(dataset, told["stage"], events, thresholds, resamples=30)
    reader = ShardReader(dataset)
    stages = RecordLabels(dataset, reader, ("stage", *KINDS))
    want = []
    for row in range(len(dataset)):
        labels = stages.of(row)
        both = (labels["apnea"] >= 0) & (labels["hypopnea"] >= 0) & (labels["stage"] > 0)
        want.append(ahi(scored_events(dataset, reader, row), both))
    assert list(got.reference) == pytest.approx([value for value in want if not math.isnan(value)])
    assert got.n_nights + got.n_left_out == len(dataset) and got.mae.value < 4.0 and got.severity.accuracy.value > 0.7
    assert got.n_left_out == sum(math.isnan(value) for value in want)
    # A model that finds nothing is wrong by the human's AHI; one whose night is all wake has no AHI, and the night is left out.
    silent = {kind: replace(told[kind], seconds=np.zeros_like(told[kind].seconds)) for kind in KINDS}
    assert ahi_agreement(dataset, told["stage"], silent, thresholds, 0).mae.value == pytest.approx(np.mean(got.reference))
    awake = replace(told["stage"], probability=np.tile(np.eye(5)[0], (len(told["stage"].truth), 1)))
    none = ahi_agreement(dataset, awake, events, thresholds, 0)
    assert none.n_nights == 0 and none.n_left_out == len(dataset) and math.isnan(none.mae.value)


def test_a_night_whose_events_were_not_understood_has_no_index_and_not_a_low_one(dataset, told):
    """Without a label are then just the epochs that hold events: what is left of the night is free of them."""
    reader, predictions = ShardReader(dataset), told["hypopnea"]
    stages = RecordLabels(dataset, reader, ("stage",))
    counts = {row: sum(e.type == "hypopnea" for e in scored_events(dataset, reader, row)) for row in range(len(dataset))}
    row = max(counts, key=counts.__getitem__)
    own = np.flatnonzero(predictions.record == dataset.names[row])
    asleep = stages.of(row)["stage"] > 0
    held = [epoch for epoch in np.flatnonzero(predictions.truth[own] == 1) if asleep[epoch]]
    few = max(1, int(MOST_UNKNOWN_PER_HOUR * asleep.sum() / 120))
    assert len(held) > few

    def without(epochs):
        truth = predictions.truth.copy()
        truth[own[list(epochs)]] = -1
        return replace(predictions, truth=truth)

    def of(changed):
        events = {"apnea": told["apnea"], "hypopnea": changed}
        ahi = ahi_agreement(dataset, told["stage"], events, dict.fromkeys(KINDS, 0.5), 0)
        return EventResult.of(dataset, "hypopnea", changed, 0.5, resamples=0).index, ahi

    whole_index, whole_ahi = of(predictions)
    # What the model could not stage is of the human's sleep all the same.
    probability = told["stage"].probability.copy()
    probability[own[held]] = np.nan
    blind, heads = replace(told["stage"], probability=probability), {"apnea": told["apnea"], "hypopnea": without(held)}
    assert ahi_agreement(dataset, blind, heads, dict.fromkeys(KINDS, 0.5), 0).n_left_out == whole_ahi.n_left_out + 1
    for changed, more in ((without(held), 1), (without(held[:few]), 0)):
        for got, want in zip(of(changed), (whole_index, whole_ahi), strict=True):
            assert got.n_left_out == want.n_left_out + more and got.n_nights == want.n_nights - more
            assert min(got.reference) >= min(want.reference) - MOST_UNKNOWN_PER_HOUR


def nights(*hypnograms):
    """Predictions of (truth, stage) by night; None is an epoch that the model could not score."""
    columns = []
    for number, (truth, stage) in enumerate(hypnograms):
        probability = np.array([np.full(5, np.nan) if s is None else np.eye(5)[s] for s in stage])
        texts = [np.full(len(truth), text, object) for text in (f"r{number}", f"p{number}")]
        columns.append((*texts, np.arange(len(truth)), np.array(truth), probability))
    return Predictions(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def test_sleep_statistics_are_compared_over_what_both_scored():
    truth = [-1, 0, 0, 1, 2, 2, 0, 2, 3, 4, 4, 0, -1, -1]
    stage = [2, 0, 1, 1, 2, None, 0, 2, 2, 4, 0, 0, 0, 0]
    got = sleep_agreement(nights((truth, stage), (truth, truth[:0] + [max(s, 0) for s in truth])), resamples=0)
    theirs = sleep_statistics([-1, 0, 0, 1, 2, -1, 0, 2, 3, 4, 4, 0, -1, -1])
    mine = sleep_statistics([-1, 0, 1, 1, 2, -1, 0, 2, 2, 4, 0, 0, -1, -1])
    for name in ("total_sleep_time", "efficiency", "latency", "rem_latency", "waso", "awakenings"):
        assert got[name].reference[0] == pytest.approx(getattr(theirs, name)), name
        assert got[name].estimate[0] == pytest.approx(getattr(mine, name)), name
        assert got[name].reference[1] == got[name].estimate[1]
    assert got["minutes_N3"].reference == (0.5, 0.5) and got["minutes_N3"].estimate == (0.0, 0.5)
    assert got["latency"].bias.value == pytest.approx(-0.25) and got["latency"].unit == "min"
    without = sleep_agreement(nights(([0, 0, 1, 1], [0, 0, 0, 0]), ([-1, -1], [1, 1])), resamples=0)
    assert (without["latency"].n_nights, without["latency"].n_left_out) == (0, 1)
    assert without["total_sleep_time"].n_nights == 1


def test_predictions_are_read_as_they_were_written(told, tmp_path):
    for task in ("stage", "apnea"):
        told[task].write(tmp_path / f"{task}.parquet")
        again = Predictions.read(tmp_path / f"{task}.parquet")
        assert list(again.record) == list(told[task].record) and (again.truth == told[task].truth).all()
        assert np.allclose(again.probability, told[task].probability, atol=1e-6)
        assert (again.seconds is None) == (task == "stage")
    assert np.allclose(again.seconds, told["apnea"].seconds, atol=1e-6) and again.kinds == {}
    kinds = {name: told["apnea"].seconds * share for name, share in (("obstructive_apnea", 0.7), ("central_apnea", 0.3))}
    replace(told["apnea"], kinds=kinds).write(tmp_path / "kinds.parquet")
    again = Predictions.read(tmp_path / "kinds.parquet")
    assert list(again.kinds) == list(kinds) and all(np.allclose(again.kinds[name], kinds[name], atol=1e-6) for name in kinds)
    assert np.allclose(again.seconds, told["apnea"].seconds, atol=1e-6)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"no\.parquet: cannot be read as predictions"):
        Predictions.read(tmp_path / "no.parquet")
