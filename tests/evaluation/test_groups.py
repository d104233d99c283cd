"""Figures by age band, sex and class of AHI: those of the people in each group, and of nobody else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_nights import make_dataset, make_night

from shards.manifest import write_manifest
from shards.people import Tables
from shards.plan import read_plan
from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.groups import FEW, evaluate_groups, from_dict, group_rows, to_dict
from sleepfm.evaluation.metrics import Evaluation, evaluate
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.evaluation.predictions import Predictions
from sleepfm.reports.report import ReportData, Result, build_report
from sleepfm.signals.groups import UNKNOWN, group_of, groups
from sleepfm.signals.people import NOBODY, KnownPeople, Person
from sleepfm.signals.scorings.scoring import Event
from sleepfm.stages.model_cards import downstream_card
from sleepfm.stages.person_values import Values
from sleepfm.tasks import RECORDING_TASKS, TASKS

STAGE = TASKS["stage"]
PEOPLE = {
    "a": Person(age=17.9, sex="female", ahi=4.9, sources={"age": "t", "sex": "t", "ahi": "t"}),
    "b": Person(age=18.0, sex="male", ahi=5.0, sources={"age": "t", "sex": "t", "ahi": "t"}),
    "c": Person(age=90.0, sex="male", sources={"age": "t", "sex": "t"}),
    "d": NOBODY,
    # The second night of this person is years later.
    "e": Person(age=59.9, sex="female", ahi=30.0, sources={"age": "t", "sex": "t", "ahi": "t"}),
}


# Epochs with a scored hypopnea, in every night, and those in which one is found.
SCORED = (1, 3)
FOUND = {"na": (1, 3), "nb": (1,), "nc": (5,), "nd": (), "ne": (1, 5), "n-e2": (3,)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    nights = [make_night(f"n{key}", 6, ("EEG_C4",), subject=key) for key in PEOPLE]
    later = make_night("n-e2", 6, ("EEG_C4",), subject="e")
    later.visit = "2"
    for night in (*nights, later):
        night.events = tuple(Event(30.0 * epoch, 25.0, "hypopnea") for epoch in SCORED)
    out = make_dataset(tmp_path_factory.mktemp("groups") / "out", [*nights, later]).path
    known = KnownPeople()
    ages = {("e", "2"): Person(age=60.0, sex="female", ahi=29.9, sources={"age": "t", "sex": "t", "ahi": "t"})}
    known.add("made", {(key, "1"): person for key, person in PEOPLE.items() if person.known} | ages)
    plan = read_plan(out, json.loads((out / "plan.json").read_text())["identity"])
    write_manifest(out, plan, Tables(known))
    return Dataset.open(out)


@pytest.fixture(scope="module")
def predictions(dataset: Dataset) -> Predictions:
    rng = np.random.default_rng(0)
    record = np.repeat(np.array(dataset.names, object), 40)
    subject = np.repeat(np.array(dataset.subjects, object), 40)
    truth = rng.integers(-1, 5, len(record))
    probability = rng.dirichlet(np.ones(5), len(record))
    return Predictions(record, subject, np.tile(np.arange(40), len(dataset.names)), truth, probability)


def test_values_of_recordings_are_those_of_the_manifests_people(dataset: Dataset) -> None:
    """The table that a build writes is where a probe of recordings finds what it learns."""
    row = {dataset.names[number]: number for number in range(len(dataset.names))}
    age, sex, ahi = (Values.of(RECORDING_TASKS[task], None) for task in ("age", "sex", "ahi-class"))
    assert [age.target(dataset, row[name]) for name in ("na", "nc", "ne", "n-e2")] == [17.9, 90.0, 59.9, 60.0]
    assert [sex.target(dataset, row[name]) for name in ("na", "nb")] == [1.0, 0.0]
    assert [ahi.target(dataset, row[name]) for name in ("na", "nb", "ne", "n-e2")] == [0.0, 1.0, 3.0, 2.0]
    assert all(math.isnan(values.target(dataset, row["nd"])) for values in (age, sex, ahi))


def figures(predictions: Predictions) -> Evaluation:
    return evaluate_predictions(STAGE, predictions, math.nan, resamples=20, seed=1)


def test_each_group_has_the_figures_of_its_recordings_alone(dataset: Dataset, predictions: Predictions) -> None:
    found = evaluate_groups(dataset, predictions, figures)
    expected = {
        "age": {
            "below 18": ["na"],
            "18 to below 40": ["nb"],
            "40 to below 60": ["ne"],
            "60 to below 80": ["n-e2"],
            "80 and above": ["nc"],
            UNKNOWN: ["nd"],
        },
        "sex": {"female": ["na", "ne", "n-e2"], "male": ["nb", "nc"], UNKNOWN: ["nd"]},
        "ahi": {
            "below 5": ["na"],
            "5 to below 15": ["nb"],
            "15 to below 30": ["n-e2"],
            "30 and above": ["ne"],
            UNKNOWN: ["nc", "nd"],
        },
    }
    assert {name: list(part) for name, part in found.items()} == {name: list(part) for name, part in expected.items()}
    for grouping, part in expected.items():
        for group, records in part.items():
            own = np.isin(predictions.record, records)
            by_hand = evaluate(
                STAGE, predictions.truth[own], predictions.probability[own], predictions.subject[own], threshold=math.nan,
                n_boot=20, seed=1,
            )  # fmt: skip
            assert json.dumps(found[grouping][group].to_dict()) == json.dumps(by_hand.to_dict())
    assert found["sex"]["female"].n_subjects == 2
    assert json.dumps(to_dict(from_dict(to_dict(found)))) == json.dumps(to_dict(found))


def test_of_what_is_not_known_there_are_no_figures(tmp_path: Path, predictions: Predictions) -> None:
    nights = [make_night(name, 6, ("EEG_C4",), subject=subject) for name, subject in dict(
        zip(predictions.record, predictions.subject, strict=True)).items()]  # fmt: skip
    dataset = make_dataset(tmp_path / "out", nights)
    found = evaluate_groups(dataset, predictions, figures)
    assert found == {}
    whole = figures(predictions)
    assert "are not known to the data set" in downstream_card("Stages", {}, whole, None, by_group={"val": found})
    page = build_report(tmp_path, ReportData("Run", results=[Result("Stages", "m", "test", whole, by_group={"test": found})]))
    assert "are not known to the data set" in page.read_text()


def test_card_and_report_show_every_group_with_how_few_its_people_are(
    dataset: Dataset, predictions: Predictions, tmp_path: Path
) -> None:
    found = evaluate_groups(dataset, predictions, figures)
    whole = figures(predictions)
    by_group = {"val": found, "test": {**found, "age": {"80 and above": found["age"]["80 and above"]}}}
    card = downstream_card("Stages", {}, whole, whole, by_group=by_group)
    kappa = found["sex"]["male"].metrics["kappa"].value
    (male,) = [line for line in card.splitlines() if "| male |" in line]
    assert male.count(f"2 (fewer than {FEW}) | {kappa:.3f}") == 2
    (young,) = [line for line in card.splitlines() if "| below 18 |" in line]
    assert young.endswith("| 0 | – |")
    page = build_report(
        tmp_path, ReportData("Run", results=[Result("Stages", "m", "test", whole, by_group=by_group)])
    ).read_text()
    for grouping in found:
        for group in found[grouping]:
            assert f"<td>{group}</td>" in page
    assert f"2 (fewer than {FEW})" in page and f"{kappa:.3f}" in page and "People, val" in page
    rows = list(group_rows(by_group))
    assert [row.group for row in rows if row.grouping == "Sex"] == ["female", "male", UNKNOWN]


def test_events_of_a_group_are_counted_as_by_hand(dataset: Dataset, tmp_path: Path) -> None:
    record, subject = (np.repeat(np.array(names, object), 6) for names in (dataset.names, dataset.subjects))
    epoch = np.tile(np.arange(6), len(dataset.names))
    positive = np.array([number in FOUND[name] for name, number in zip(record, epoch, strict=True)], float)
    truth = np.isin(epoch, SCORED).astype(np.int64)
    told = Predictions(record, subject, epoch, truth, np.column_stack([1 - positive, positive]))
    result = EventResult.of(dataset, "hypopnea", told, 0.5, resamples=0)
    # Matched, missed and false.
    expected = {
        "age": {
            "below 18": (2, 0, 0),
            "18 to below 40": (1, 1, 0),
            "40 to below 60": (1, 1, 1),
            "60 to below 80": (1, 1, 0),
            "80 and above": (0, 2, 1),
            UNKNOWN: (0, 2, 0),
        },
        "sex": {"female": (4, 2, 1), "male": (1, 3, 1), UNKNOWN: (0, 2, 0)},
        "ahi": {
            "below 5": (2, 0, 0),
            "5 to below 15": (1, 1, 0),
            "15 to below 30": (1, 1, 0),
            "30 and above": (1, 1, 1),
            UNKNOWN: (0, 4, 1),
        },
    }
    counted = {name: {group: EventAgreement(*counts) for group, counts in part.items()} for name, part in expected.items()}
    assert result.by_group == counted and list(result.by_group["age"]) == list(expected["age"])
    assert EventResult.from_dict(json.loads(json.dumps(result.to_dict()))).by_group == result.by_group
    older = {name: value for name, value in result.to_dict().items() if name != "by_group"}
    assert EventResult.from_dict(older).by_group == {}
    whole = evaluate_predictions(TASKS["hypopnea"], told, 0.5, resamples=0)
    parts = evaluate_groups(dataset, told, lambda part: evaluate_predictions(TASKS["hypopnea"], part, 0.5, resamples=0))
    card = downstream_card("Hypopnea", {}, whole, whole, {"val": result}, {"val": parts})
    (women,) = [line for line in card.splitlines() if "| female |" in line]
    # 2 x 4 of 2 x 4 + 2 + 1.
    assert women.endswith("| 0.727 (4, 2, 1) |")
    shown = Result("Hypopnea", "m", "test", whole, by_group={"test": parts}, events_by_group={"test": result.by_group})
    page = build_report(tmp_path, ReportData("Run", results=[shown])).read_text()
    assert "0.727 (4, 2, 1)" in page and "F1 of positive runs, test" in page
    assert "positive runs were matched (overlap ≥ 20 %), missed and false" in page


def test_ten_people_are_not_few() -> None:
    many = evaluate(STAGE, [0, 1] * 10, np.full((20, 5), 0.2), [str(n // 2) for n in range(20)], n_boot=10)
    (row,) = group_rows({"val": {"sex": {"male": many}}})
    assert row.told("val") == "10"


@pytest.mark.parametrize("grouping", ["age", "sex", "ahi"])
def test_every_value_is_in_one_of_the_groups(grouping: str) -> None:
    values = ["female", "male"] if grouping == "sex" else np.arange(0, 120, 0.1).tolist()
    found = [group_of(Person(**{grouping: value}), grouping) for value in values]
    assert list(dict.fromkeys(found)) == [name for name in groups(grouping) if name != UNKNOWN]
    assert group_of(NOBODY, grouping) == UNKNOWN == groups(grouping)[-1]
