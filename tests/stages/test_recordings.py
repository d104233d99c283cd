"""Probes of whole recordings: what is known of people, how epochs are weighed, and that a value is learnt where there is one."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_nights import make_dataset, make_night

from sleepfm.config import load_config, read_yaml
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.errors import ConfigError, LeakageError, ModelError, SubjectTableError
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.regression import Regression
from sleepfm.models.build import build_model, model_config
from sleepfm.models.recording import PoolConfig, RecordingModel, RecordingModelConfig
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.people import Seen
from sleepfm.registry.registry import Resolved, load
from sleepfm.signals.people import Person
from sleepfm.stages.downstream_config import RecordingProbeConfig
from sleepfm.stages.person_values import Values, ValueTable
from sleepfm.stages.recording_probe import RecordingProbeStage, as_batch
from sleepfm.tasks import RECORDING_TASKS, RecordingTask, ValueRule
from sleepfm.training.ranks.shared_work import ALONE

PEOPLE = 48
SPLITS = ("split.pretrain=0.05", "split.label=0.55", "split.val=0.2", "split.test=0.2")


def age_of(number):
    return 20 + 60 * ((number * 0.618034) % 1)


def sex_of(number):
    return "female" if number % 3 else "male"


@pytest.fixture(scope="module")
def nights(tmp_path_factory, one_thread):
    """Nights in whose EEG a rhythm is the faster, the older somebody is; that of women has another beside it."""
    made = []
    for number in range(PEOPLE):
        night = make_night(f"n{number}", 3, ["EEG_C4"], subject=f"person{number}")
        seconds = np.arange(3 * 3000) / 100
        rhythm = np.sin(2 * np.pi * (2 + 10 * (age_of(number) - 20) / 60) * seconds)
        other = np.sin(2 * np.pi * 25 * seconds) * (sex_of(number) == "female")
        night.channels["EEG_C4"][:] = (night.channels["EEG_C4"] + 2 * rhythm + 1.5 * other).astype(np.float32)
        made.append(night)
    return make_dataset(tmp_path_factory.mktemp("recordings") / "set", made, 16, SPLITS)


@pytest.fixture
def source(encoder_package):
    return Resolved(str(encoder_package), encoder_package)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def table(path, values, title="age", key="subject"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([key, "height", title])
        writer.writerows([name, 1, value] for name, value in values.items())
    return path


def job(nights, tmp_path, cache, task, file, *overrides):
    fixed = [f"data.path={nights.path}", f"train.output={tmp_path / 'run'}", f"cache={cache}", f"values.file={file}"]
    fixed += ["deepspeed.dtype=fp32", "evaluate.resamples=40"]
    config = config_root() / "downstream" / f"recordings-{task}-tiny.yaml"
    return load_config(RecordingProbeConfig, config, [*fixed, *overrides])


def learn(stage, steps=100, batch=16):
    """The engine's steps without the engine; the best by ``val``."""
    stage.module.train()
    optimiser = torch.optim.AdamW([p for p in stage.module.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.05)
    for step in range(steps):
        torch.manual_seed(step)
        optimiser.zero_grad()
        batch_of_step = stage.stream.batch(step * batch, batch)
        stage.loss(stage.module, batch_of_step, 0).loss.backward()
        optimiser.step()
    stage.module.eval()


def ages(nights, shuffle=False):
    found = {subject: age_of(int(subject.removeprefix("person"))) for subject in nights.subjects}
    if shuffle:
        values = np.random.default_rng(5).permutation(list(found.values()))
        found = dict(zip(found, values, strict=True))
    return found


def test_age_is_learnt_where_it_shows_and_not_where_it_is_shuffled(nights, source, tmp_path, cache):
    found = {}
    for shuffle in (False, True):
        folder = tmp_path / str(shuffle)
        folder.mkdir()
        file = table(folder / "people.csv", ages(nights, shuffle))
        stage = RecordingProbeStage(job(nights, folder, cache, "age", file), source, ALONE)
        learn(stage)
        figures = stage.validate(stage.module)
        export = stage.export(stage.module, folder)
        content = json.loads((folder / "evaluation.json").read_text())
        results = {split: Regression.from_dict(values) for split, values in content["regression"].items()}
        assert figures["val/r2"] == pytest.approx(results["val"].metrics["r2"].value)
        assert export.metrics["test/mae"] == pytest.approx(results["test"].metrics["mae"].value)
        found[shuffle] = results["test"].metrics
        page = (folder / "evaluation.html").read_text()
        assert "sleepfm-age on test: " in page and f"<b>{results['test'].metrics['mae'].value:.1f}</b>" in page
        assert f"Bland-Altman plot of {results['test'].n_recordings} recordings, age" in page
        rows = pd.read_parquet(folder / "predictions-test.parquet")
        assert set(rows["record"]) == {row.record for row in nights.records if row.split == "test"}
        assert np.abs(rows["truth"] - rows["estimate"]).mean() == pytest.approx(results["test"].metrics["mae"].value, abs=1e-4)
    assert found[False]["r2"].value > 0.5 and found[False]["mae"].value < 0.6 * found[False]["baseline_mae"].value
    assert found[True]["r2"].value < 0.2 and found[True]["mae"].value > 0.8 * found[True]["baseline_mae"].value
    for metric in found[False].values():
        assert metric.ci_low <= metric.value <= metric.ci_high


@pytest.mark.slow
def test_classes_are_learnt_and_their_package_says_the_same(nights, source, tmp_path, cache):
    file = table(tmp_path / "people.csv", {f"person{n}": sex_of(n) for n in range(PEOPLE)}, "sex")
    stage = RecordingProbeStage(job(nights, tmp_path, cache, "sex", file, "weighting=inverse"), source, ALONE)
    before = {name: value.clone() for name, value in stage.module.encoder.state_dict().items()}
    learn(stage)
    assert all(torch.equal(value, before[name]) for name, value in stage.module.encoder.state_dict().items())
    export = stage.export(stage.module, tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    result = Evaluation.from_dict(content["results"]["test"])
    assert result.n_epochs == result.n_subjects == sum(split == 3 for split in nights.split_of.tolist())
    assert result.metrics["auroc"].value > 0.8 and "majority_accuracy" in export.card
    page = (tmp_path / "evaluation.html").read_text()
    assert f"sleepfm-sex on test: {result.n_epochs} recordings" in page and "share of positive recordings" in page
    write_package(tmp_path / "package", stage.module, export.config, export.card)
    loaded = load(tmp_path / "package")
    assert isinstance(loaded, RecordingModel) and not loaded.training
    rows = pd.read_parquet(tmp_path / "predictions-test.parquet").set_index("record")
    for _, found in stage._nights("test"):
        for name, night in found.items():
            assert loaded.predict(*as_batch(night))[0].tolist() == pytest.approx(rows.loc[name, ["p0", "p1"]].tolist(), abs=1e-5)
    assert loaded.embed({"EEG_C4": torch.randn(2, 3000)}).shape == (2, loaded.dim)


def test_who_is_not_known_is_left_out_and_a_test_person_who_was_seen_is_refused(nights, source, tmp_path, cache, encoder_package):
    known = {subject: age for subject, age in ages(nights).items() if int(subject.removeprefix("person")) % 2}
    stage = RecordingProbeStage(job(nights, tmp_path, cache, "age", table(tmp_path / "p.csv", known)), source, ALONE)
    label = {row.subject for row in nights.records if row.split == "label"}
    assert len(stage.stream) == len(label & known.keys()) > 0
    stage.module.eval()
    assert stage.export(stage.module, tmp_path).config["facts"]["people"] == len(label & known.keys())
    encoder = build_model(read_yaml(encoder_package / "config.yaml")["model"])
    seen = Seen.of([nights], {"test": "pretraining"}).to_plain()
    write_package(tmp_path / "seen", encoder, {"model": model_config(encoder), "training": {"people": seen}}, "card")
    with pytest.raises(LeakageError, match="were seen before"):
        file = table(tmp_path / "q.csv", ages(nights))
        RecordingProbeStage(job(nights, tmp_path, cache, "age", file), Resolved(str(tmp_path / "seen"), tmp_path / "seen"), ALONE)


def small_recording(classes=(), heads=2):
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"])
    plan = RecordingModelConfig(task="x", classes=classes, encoder=model_config(encoder), pool=PoolConfig(heads=heads, hidden=16))
    return RecordingModel(plan, encoder).eval()


@torch.no_grad()
def test_neither_order_nor_padding_of_epochs_matters():
    model = small_recording(("a", "b", "c"))
    night = torch.randn(7, model.dim)
    night[3] = torch.nan
    alone = model.predict(*as_batch(night))
    assert alone.sum() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(model.predict(*as_batch(night[torch.randperm(7)])), alone, atol=1e-6)
    assert torch.allclose(model.predict(*as_batch(night, 20)), alone, atol=1e-6)
    assert torch.allclose(model.predict(*as_batch(torch.cat([night[:3], night[4:]]))), alone, atol=1e-6)
    embedding, valid = as_batch(night, 9)
    weights = model.attention(embedding, valid)
    assert weights.shape == (1, 9, 2) and torch.allclose(weights.sum(1), torch.ones(1, 2)) and (weights[~valid] == 0).all()
    nothing = model.predict(torch.zeros(1, 4, model.dim), torch.zeros(1, 4, dtype=torch.bool))
    assert nothing.isnan().all()
    with pytest.raises(ModelError, match=r"expected embeddings \[B, E, "):
        model(torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool))


@torch.no_grad()
def test_a_number_is_told_in_its_own_unit():
    model = small_recording()
    model.centre.fill_(50.0)
    model.spread.fill_(10.0)
    night = as_batch(torch.randn(5, model.dim))
    assert torch.allclose(model.predict(*night), 50 + 10 * model(*night))


def test_values_of_the_data_set_are_those_of_its_people(nights, monkeypatch):
    person = Person(age=61.0, sex="female", ahi=15.0, more={"ess": "11"})
    monkeypatch.setattr(type(nights.people), "of", lambda self, index: person)
    for task, expected in (("age", 61.0), ("sex", 1.0), ("ahi-class", 2.0)):
        assert Values.of(RECORDING_TASKS[task], None).target(nights, 0) == expected
    sleepiness = RecordingTask("sleepiness", "regression", ValueRule("ess"), "r2")
    assert Values.of(sleepiness, None).target(nights, 0) == 11.0
    assert math.isnan(Values.of(RecordingTask("x", "regression", ValueRule("unknown"), "r2"), None).target(nights, 0))


def test_nobody_known_is_refused(nights, tmp_path):
    said = r"no person has a value for the task age \(age, in the table of people of the data set\); .* values\.file"
    with pytest.raises(SubjectTableError, match=said):
        Values.of(RECORDING_TASKS["age"], None).check(Mixture.of(nights))
    file = table(tmp_path / "p.csv", {"somebody": 3})
    with pytest.raises(SubjectTableError, match="keys of the table"):
        Values.of(RECORDING_TASKS["age"], ValueTable(file=str(file))).check(Mixture.of(nights))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("subject,height\na,1\n", "no column 'age'; it has subject, height"),
        ("person,age\na,1\n", "no column 'subject'"),
        ("subject,age\na,1\nb,old\n", "line 3: column age: 'old' is not a value of task age"),
        ("subject,age\na,inf\n", "is not a value of task age"),
        ("subject,age\na,1\na,2\n", "line 3: a has another age above"),
        ("", "no column 'subject'; it has no titles"),
        ("subject,age\na,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_does_not_say_what_is_asked_is_refused(tmp_path, text, reason):
    file = tmp_path / "people.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SubjectTableError, match=reason):
        Values.of(RECORDING_TASKS["age"], ValueTable(file=str(file)))


def test_a_table_of_recordings_and_of_other_titles(nights, tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("﻿night,ess,note\nn0,3,\nn1,NA,\nn2, ,x\nn3,7,\nn3,7,again\n", encoding="utf-8")
    asked = ValueTable(file=str(file), key="night", of="record", column="ess")
    values = Values.of(RecordingTask("sleepiness", "regression", ValueRule("score"), "r2"), asked)
    rows = {name: nights.index_of(name) for name in ("n0", "n1", "n2", "n3", "n4")}
    found = {name: values.target(nights, row) for name, row in rows.items()}
    assert found["n0"] == 3 and found["n3"] == 7 and all(math.isnan(found[name]) for name in ("n1", "n2", "n4"))
    with pytest.raises(SubjectTableError, match=r"missing\.csv: cannot be read"):
        Values.of(RECORDING_TASKS["age"], ValueTable(file=str(tmp_path / "missing.csv")))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("x", "regression", ValueRule("age"), "r2", ("a",)), "1 classes do not go with regression"),
        (("x", "binary", ValueRule("age"), "auroc", ("a", "b", "c")), "3 classes do not go with binary"),
        (("x", "multiclass", ValueRule("age", (5.0,)), "kappa", ("a", "b", "c")), "do not separate 3 classes"),
        (("x", "multiclass", ValueRule("age", (5.0, 3.0)), "kappa", ("a", "b", "c")), "do not separate 3 classes"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        RecordingTask(*values)


def test_severity_begins_at_its_bounds():
    task = RECORDING_TASKS["ahi-class"]
    assert [task.target(value) for value in (0, 4.99, 5, 14.9, "15", 29, 30, 80.0)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert math.isnan(task.target(None))


@pytest.mark.parametrize("task", RECORDING_TASKS.values(), ids=list(RECORDING_TASKS))
def test_shipped_configurations_say_what_the_table_says(task):
    for size in ("tiny", "base"):
        config = load_config(RecordingProbeConfig, config_root() / "downstream" / f"recordings-{task.name}-{size}.yaml")
        assert (config.registry.name, config.registry.metric) == (task.registered_name, f"val/{task.metric}")
        assert config.registry.metric in config.larger_is_better()
        with pytest.raises(ConfigError, match="unknown task 'height'"):
            load_config(
                RecordingProbeConfig, config_root() / "downstream" / f"recordings-{task.name}-{size}.yaml", ["task=height"]
            )


def test_the_data_set_is_as_it_was(nights):
    """Nothing above has written into it."""
    assert Dataset.open(nights.path).digest == nights.digest
