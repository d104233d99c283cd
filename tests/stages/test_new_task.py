"""A task is an entry of the table and a YAML file: probe, registry, report and scoring take it from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sleepfm.cli import main
from sleepfm.config import load_config, read_yaml
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events
from sleepfm.data.stream import Reading, SequenceStream
from sleepfm.errors import ConfigError, DatasetError
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.registry.people import Seen
from sleepfm.registry.registry import Resolved, load, resolve
from sleepfm.reports.night_files import agreement_with
from sleepfm.reports.report import ReportData, Result, build_report
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.downstream_package import read_events, read_results
from sleepfm.stages.monitor import MonitorConfig
from sleepfm.stages.probe import ProbeStage
from sleepfm.tasks import TASKS, LabelRule, Task
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.shared_work import ALONE

ROOT = Path(__file__).parents[2]

AROUSAL = Task("arousal", ("none", "arousal"), "binary", LabelRule("arousal"), "auprc", event="arousal")
WAKE = Task("wake", ("asleep", "awake"), "binary", LabelRule("stage", class_of=(1, 0, 0, 0, 0)), "auroc")

# What a stage's own script does, with one more task in the table.
LAUNCHER = f"""
import runpy

from sleepfm.tasks import TASKS, LabelRule, Task

TASKS["arousal"] = {AROUSAL!r}
runpy.run_path({str(ROOT / "launch" / "probe.py")!r}, run_name="__main__")
"""


@pytest.fixture
def arousal(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(TASKS, "arousal", AROUSAL)
    return AROUSAL


@pytest.fixture
def wake(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(TASKS, "wake", WAKE)
    return WAKE


def configuration(folder: Path, task: str, dataset, **settings: object) -> Path:
    """The YAML file of a probe for ``task``."""
    train = {"output": str(folder / "run"), "steps": 20, "checkpoint_every": 20, "validate_every": 10}
    content = {"extends": "probe-tiny.yaml", "task": task, "train": train, "data": {"path": str(dataset.path)}, **settings}
    path = folder / f"probe-{task}.yaml"
    path.write_text(yaml.safe_dump(content | {"cache": str(folder / "cache")}))
    return path


@pytest.mark.slow
def test_a_task_added_to_the_table_is_trained_registered_reported_and_scored(
    dataset, recordings, encoder_package, tmp_path, monkeypatch
):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    # In fp32, as scoring computes: what is scored is then what was evaluated.
    exact = {"deepspeed": {"dtype": "fp32"}}
    config = configuration(tmp_path, "arousal", dataset, encoder=str(encoder_package), **exact)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "launcher.py"), str(config), "--allow-leakage"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "registered sleepfm-arousal:1 (now champion)" in done.stdout

    monkeypatch.setitem(TASKS, "arousal", AROUSAL)
    output = tmp_path / "run"
    champion = resolve("models:/sleepfm-arousal@champion", store)
    assert champion.tags["selected_by"] == "val/auprc"
    # Whom it has seen, as far as that is known: nobody told of the encoder.
    package = read_yaml(champion.path / "config.yaml")
    seen = Seen.of([dataset], {"label": "training", "val": "selection"})
    assert Seen.of_package(package, "it").people == seen.people and champion.tags["people"] == seen.tags()["people"]
    assert "encoder" in champion.tags["people.unknown"] and "unknown: it cannot be told" in done.stderr
    assert package["training"]["config"]["evaluate"]["allow_leakage"] is True
    facts, evaluations = read_results(output)
    assert facts["test people seen before"].startswith("unknown")
    test_rows = dataset.select("test")
    truth = np.concatenate([dataset_labels(dataset, row, "arousal") for row in test_rows])
    counted = evaluations["test"]
    assert counted.classes == AROUSAL.classes and sum(map(sum, counted.confusion)) == (truth >= 0).sum()
    assert sum(counted.confusion[1]) == (truth == 1).sum() > 0
    events = read_events(output)
    reader = ShardReader(dataset)
    scored = [e for row in test_rows for e in scored_events(dataset, reader, int(row)) if e.type == "arousal"]
    assert 0 < events["test"].matched + events["test"].missed <= len(scored)

    page = build_report(
        tmp_path / "report",
        ReportData(
            title="Arousals",
            results=[Result("Arousals", champion.label, "test", counted, facts["labelled epochs"], events["test"])],
            traces={"probe-arousal": RunFolder(output).trace},
        ),
    ).read_text()
    assert champion.label in page and f">{facts['labelled epochs']}<" in page

    night = next(path for path in recordings if path.stem == dataset.names[int(test_rows[0])])
    assert main(["score", str(night), "--model", "models:/sleepfm-arousal@champion", "--out", str(tmp_path / "scored")]) == 0
    folder = tmp_path / "scored" / night.stem
    found = pd.read_csv(folder / "hypnodensity.csv")["arousal"].to_numpy()
    predicted = pd.read_parquet(RunFolder(output).predictions("test")).query("record == @night.stem")["p1"].to_numpy()
    assert np.allclose(found, predicted, atol=1e-4)
    summary = json.loads((folder / "summary.json").read_text())
    threshold = summary["thresholds"]["arousal"]
    assert threshold == counted.threshold
    assert summary["agreement"]["arousal"]["positive_runs"] is True
    runs = pd.read_csv(folder / "positive_runs.csv")
    assert set(runs["type"]) <= {"arousal"} and runs["duration_s"].sum() == 30 * (found >= threshold).sum()


def dataset_labels(dataset, row: int, name: str) -> np.ndarray:
    return RecordLabels(dataset, ShardReader(dataset), (name,), name).of(int(row))[name]


def test_a_label_rule_says_what_a_stored_value_means(dataset, wake):
    for row in dataset.select("label"):
        stage, awake = dataset_labels(dataset, row, "stage"), dataset_labels(dataset, row, "wake")
        assert (awake == np.where(stage < 0, -1, stage == 0)).all() and set(np.unique(awake)) >= {0, 1}
    stream = SequenceStream(dataset, "label", ["EEG_C4"], 30, reading=Reading(read_ahead=False))
    assert set(stream.batch(0, 1).labels) == {"stage", "apnea", "hypopnea", "arousal", "wake"}
    with pytest.raises(DatasetError, match=r"unknown label 'awake'.*the tasks are stage, apnea, hypopnea, arousal, wake"):
        RecordLabels(dataset, ShardReader(dataset), ("awake",))


def test_a_fraction_of_a_tasks_labels_keeps_both_of_its_classes(dataset, wake):
    row = int(dataset.select("label")[0])
    kept = RecordLabels(dataset, ShardReader(dataset), ("stage",), "wake", fraction=0.1).of(row)
    stage, awake = dataset_labels(dataset, row, "stage"), dataset_labels(dataset, row, "wake")
    expected = sum(max(1, round(0.1 * (awake == value).sum())) for value in (0, 1))
    assert (kept["wake"] >= 0).sum() == expected and set(kept["wake"]) == {-1, 0, 1}
    assert (kept["stage"][kept["wake"] >= 0] == stage[kept["wake"] >= 0]).all()


def test_a_probe_of_a_task_without_events_compares_none(dataset, encoder_package, tmp_path, wake):
    config = load_config(ProbeConfig, configuration(tmp_path, "wake", dataset, encoder=str(encoder_package)))
    assert (config.registry.name, config.registry.metric) == ("sleepfm-wake", "val/auroc")
    stage = ProbeStage(config, Resolved(str(encoder_package), encoder_package), ALONE)
    stage.module.eval()
    export = stage.export(stage.module, tmp_path)
    assert export.config["usage"]["task"] == "wake" and "event" not in " ".join(export.metrics) and read_events(tmp_path) == {}
    assert "asleep, awake of 30-s epochs" in export.card


def test_a_configuration_names_a_task_of_the_table(dataset, tmp_path, arousal, wake):
    path = configuration(tmp_path, "arousel", dataset)
    with pytest.raises(ConfigError, match=r"'arousel'; did you mean 'arousal'\? known tasks: stage, apnea, .*, wake"):
        load_config(ProbeConfig, path)
    with pytest.raises(ValueError, match="unknown task 'dreams'; known tasks: stage"):
        MonitorConfig(task="dreams")
    assert MonitorConfig(task="wake").task == "wake"
    with pytest.raises(ConfigError, match=r"registry\.name: task arousal is registered as 'sleepfm-arousal'"):
        load_config(ProbeConfig, path, ["task=arousal", "registry.name=sleepfm-stage"])
    base = config_root() / "downstream" / "finetune-apnea-events-tiny.yaml"
    with_events = {task: [f"task={task}", f"registry.name=sleepfm-{task}"] for task in ("arousal", "wake", "stage")}
    assert load_config(FinetuneConfig, base, with_events["arousal"]).events is not None
    for task in ("wake", "stage"):
        with pytest.raises(ConfigError, match=f"events: task {task} has no onset and duration"):
            load_config(FinetuneConfig, base, with_events[task])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ("a", "b", "c")}, "a binary task has two classes"),
        ({"label": LabelRule("stage", (0, 1, 2, 0, 0))}, "names a class beyond"),
        ({"kind": "multiclass", "event": "apnea"}, "only a binary task says where events are"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Task(**(vars(WAKE) | changes))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_shipped_configurations_say_what_the_table_says(task):
    for schema, name in ((ProbeConfig, "probe"), (FinetuneConfig, "finetune")):
        for size in ("tiny", "base"):
            config = load_config(schema, config_root() / "downstream" / f"{name}-{task.name}-{size}.yaml")
            assert (config.registry.name, config.registry.metric) == (task.registered_name, f"val/{task.metric}")


def test_a_night_is_scored_for_a_task_without_events(recordings, encoder_package, wake):
    encoder = load(encoder_package)
    plan = DownstreamConfig(task="wake", classes=wake.classes, encoder=model_config(encoder))
    model = Downstream(plan, encoder).eval()
    usage = Usage(task="wake", classes=wake.classes, window=5, threshold=0.5)
    night = prepare_night(recordings[0])
    score = Scorer([TaskModel(model, usage, "wake")]).score(night)
    assert score.probability["wake"].shape == (30,) and score.runs == () and score.events == ()
    found = agreement_with(score, night)["wake"]
    called = score.probability["wake"] >= 0.5
    scored = (night.stage >= 0) & np.isfinite(score.probability["wake"])
    assert found["accuracy"] == pytest.approx((called == (night.stage == 0))[scored].mean())


def test_a_model_of_a_task_that_is_not_in_the_table_is_refused(encoder_package):
    encoder = load(encoder_package)
    classes = ("still", "moving")
    model = Downstream(DownstreamConfig(task="movement", classes=classes, encoder=model_config(encoder)), encoder).eval()
    with pytest.raises(ConfigError, match=r"unknown task 'movement'; known tasks: stage, apnea, hypopnea"):
        Scorer([TaskModel(model, Usage(task="movement", classes=classes, window=5, threshold=0.5), "movement")])
