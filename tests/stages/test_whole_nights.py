"""Finished downstream jobs together: what their packages, cards and report say of events, AHI and sleep statistics."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from told_predictions import whole

from sleepfm.config import load_config
from sleepfm.demo import summary
from sleepfm.demo.runner import Done, Journal
from sleepfm.demo.steps import DemoConfig, Plan
from sleepfm.errors import TrainingError
from sleepfm.evaluation.calibration import calibrated
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.registry.registry import load
from sleepfm.reports.report import ReportData, Result, build_report
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.stages.downstream_package import package_contents
from sleepfm.stages.run_results import read_event_results, read_results, read_sleep
from sleepfm.stages.whole_nights import ahi_of_jobs
from sleepfm.training.folder import RunFolder


def of_split(dataset, predictions, *splits):
    names = {row.record for row in dataset.records if row.split in splits}
    rows = np.isin(predictions.record.astype(str), list(names))
    parts = (predictions.record, predictions.subject, predictions.epoch, predictions.truth, predictions.probability)
    seconds = None if predictions.seconds is None else predictions.seconds[rows]
    return type(predictions)(*(part[rows] for part in parts), seconds)


@pytest.fixture(scope="module")
def jobs(dataset, downstream_packages, tmp_path_factory):
    """Folders of three finished jobs whose models say what the human said, less surely than they could."""
    folders, exports = {}, {}
    for task, classes in (("stage", 5), ("apnea", 2), ("hypopnea", 2)):
        folders[task] = tmp_path_factory.mktemp(task)
        overrides = [f"data.path={dataset.path}", f"train.output={folders[task]}", "evaluate.resamples=30"]
        config = load_config(ProbeConfig, config_root() / "downstream" / f"probe-{task}-tiny.yaml", overrides)
        found = whole(dataset, task, classes, certainty=0.6)
        # One epoch in twelve is called otherwise, so that there is a temperature at which the loss is least.
        wrong = np.arange(len(found.truth)) % 12 == 0
        found.probability[wrong] = np.roll(found.probability[wrong], 1, axis=1)
        # More people than those of `val`, who may have had no event.
        val, test = of_split(dataset, found, "pretrain", "label", "val"), of_split(dataset, found, "test")
        facts = {"labelled epochs": 7, "test people seen before": "none: of 2 people"}
        exports[task] = package_contents(
            config, load(downstream_packages[task]), dataset, folders[task], val, test, facts, 1, lambda: None
        )
    return folders, exports


def test_a_package_says_its_temperature_and_how_its_thresholds_were_chosen(dataset, jobs):
    folders, exports = jobs
    for task, export in exports.items():
        usage = Usage.model_validate(export.config["usage"])
        # 0.6 is said of what is right in 11 of 12: colder is better.
        assert usage.temperature < 0.9 and f"{usage.temperature:.3f} (least log loss on val)" in export.card
        raw = of_split(dataset, whole(dataset, task, len(usage.classes), certainty=0.6), "test")
        written = RunFolder(folders[task]).predictions("test")
        stored = type(raw).read(written)
        scored = stored.truth >= 0
        right = stored.probability[scored, stored.truth[scored]]
        assert right.max() == pytest.approx(calibrated(raw, usage.temperature).probability.max(), abs=1e-5)
    usage = Usage.model_validate(exports["hypopnea"].config["usage"])
    assert usage.located and usage.event_threshold_rule == "max F1 of events (overlap of at least 20%) on val"
    card = exports["hypopnea"].card
    assert "| events: f1_iou_0.5 |" in card and "| hypopnea per hour, ICC(2,1) |" in card and "balanced_accuracy" in card
    assert "sensitivity_at_specificity" in card
    metrics = exports["hypopnea"].metrics
    assert metrics["test/event_f1_iou_0.2"] == metrics["test/event_f1"] and "val/event_onset_error_s" in metrics
    facts, results = read_results(folders["stage"])
    assert facts["labelled epochs"] == 7 and results["test"].metrics["balanced_accuracy"].value > 0.8


def test_the_ahi_is_that_of_the_jobs_own_stages_and_events(dataset, jobs):
    folders, _ = jobs
    found, missing = ahi_of_jobs(list(folders.values()), dataset, resamples=20)
    assert missing == "" and found.n_nights + found.n_left_out == sum(row.split == "test" for row in dataset.records)
    assert found.unit == "1/h" and found.severity is not None
    none, why = ahi_of_jobs([folders["stage"], folders["apnea"]], dataset)
    assert none is None and why.startswith("no model of this run tells hypopnea to the second")
    assert ahi_of_jobs([folders["apnea"], folders["hypopnea"]], dataset)[1] == "no model of this run tells sleep stages"
    with pytest.raises(TrainingError, match=r"predictions-train\.parquet: missing"):
        ahi_of_jobs(list(folders.values()), dataset, split="train")


def test_the_report_shows_events_ahi_and_sleep_statistics(dataset, jobs, tmp_path):
    folders, _ = jobs
    results = []
    for task, folder in folders.items():
        facts, evaluations = read_results(folder)
        results.append(
            Result(
                task,
                f"sleepfm-{task} v1",
                "test",
                evaluations["test"],
                event_result=read_event_results(folder).get("test"),
                sleep=read_sleep(folder).get("test", {}),
                leakage=facts["test people seen before"].replace("none", "LEAK, allowed"),
            )
        )
    ahi, _ = ahi_of_jobs(list(folders.values()), dataset, resamples=20)
    text = build_report(tmp_path, ReportData("T", results=results, ahi=ahi)).read_text()
    for shown in ("Apnea-hypopnea index", "Limits of agreement", "ICC(2,1)", "50 % of the union", "total sleep time (min)"):
        assert shown in text, shown
    assert "Event F1" in text and "at 20 % overlap" in text
    assert "Test people seen before: LEAK, allowed" in text and "Sensitivity at specificity 0.90" in text
    assert "Bland-Altman plot of" in text or not ahi.n_nights
    missing = build_report(tmp_path, ReportData("T", results=results, ahi_missing="no model tells it")).read_text()
    assert "Not assessed: no model tells it." in missing


def test_the_demos_closing_table_and_summary_give_events_and_ahi(dataset, jobs, tmp_path, monkeypatch, capsys):
    folders, _ = jobs
    plan = Plan(load_config(DemoConfig, "demo/default.yaml"), tmp_path, 1, None)
    for name in plan.judged:
        shutil.copytree(folders[name.split("-")[1]], tmp_path / name)
        result = {"name": f"sleepfm-{name.split('-')[1]}", "version": "1", "metrics": {"val/kappa": 0.5}, "promoted": True}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    plan.shards = dataset.path
    scored = tmp_path / "scored" / "night" / "summary.json"
    scored.parent.mkdir(parents=True)
    scored.write_text(json.dumps({"record": "night", "agreement": {"ahi": {"model": 7.25, "scored": 6.0}}}))
    journal = Journal(tmp_path / "demo.json", "x", {"synth": Done(["synth"], 1.0, 2**20)})
    summary.print_table(plan, journal)
    shown = capsys.readouterr().out
    assert "event f1@0.2" in shown and "event f1@0.5" in shown and "AHI of test nights: mean error" in shown
    assert "AHI of the scored night night: 7.2/h, by its scorer 6.0/h" in shown
    # What it shows beside has no bearing on these figures.
    monkeypatch.setattr(summary, "_environment", lambda plan: {})
    summary.write_summary(plan, journal, 1.0)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(found["events"]) == {"sleepfm-apnea v1", "sleepfm-hypopnea v1"} and found["ahi"]["name"] == "ahi"
    assert "balanced_accuracy" in found["test"]["sleepfm-stage v1"]
    assert found["scored_night"] == {"record": "night", "ahi": {"model": 7.25, "scored": 6.0}}
    # A night of the user's own that nobody has scored.
    scored.write_text(json.dumps({"record": "night"}))
    shutil.rmtree(tmp_path / "events-apnea")
    shutil.copytree(tmp_path / "probe-stage", tmp_path / "events-apnea")
    summary.print_table(plan, journal)
    shown = capsys.readouterr().out
    assert "AHI of test nights: not assessed: no model of this run tells apnea to the second" in shown
    assert "AHI of the scored night" not in shown
