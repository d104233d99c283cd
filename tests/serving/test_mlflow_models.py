"""Registered versions are models of MLflow's own: what it loads, predicts and evaluates is what ``sleepfm.score`` says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import invocations

import sleepfm
from sleepfm.config import read_yaml
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.inference.embed import embed, prepared_epochs
from sleepfm.inference.scorer import prepare_night
from sleepfm.models.build import build_model, model_config
from sleepfm.models.recording import RecordingModel, RecordingModelConfig
from sleepfm.paths import config_root
from sleepfm.registry.mlflow_model import CODE, requirements, write_mlflow_files
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import look_up
from sleepfm.registry.store import client
from sleepfm.serving.inputs import FOLDER_VARIABLE, LIMIT_VARIABLE, NIGHTS_VARIABLE
from sleepfm.serving.night_scores import plain_score
from sleepfm.tasks import RECORDING_TASKS

ROOT = Path(__file__).resolve().parents[2]
ENCODER = read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"]
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


@pytest.fixture(autouse=True)
def _this_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(store, monkeypatch)


def use(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)


@pytest.fixture(scope="module")
def scorer(store: str) -> Any:
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    return mlflow.pyfunc.load_model("models:/sleepfm-scorer@champion")


def paths(*files: Path) -> pd.DataFrame:
    return pd.DataFrame({"recording": [str(file) for file in files]})


def test_a_scorer_says_through_mlflow_what_scoring_says(scorer: Any, recordings: list[Path]) -> None:
    found = scorer.predict(paths(*recordings[:2])).to_dict("records")
    assert [row["record"] for row in found] == [path.stem for path in recordings[:2]]
    for row, path in zip(found[:1], recordings, strict=False):
        score = sleepfm.score(path)
        assert row.pop("start").startswith("19")
        assert json.loads(json.dumps(row)) == json.loads(json.dumps(plain_score(score)))
        assert row["stages"] == score.stages.tolist() and len(row["stages"]) == score.n_epochs
        assert np.allclose(np.array(row["hypnodensity"], float), score.hypnodensity, equal_nan=True)
        assert row["models"] == {task: f"models:/sleepfm-{task}/1" for task in CHAMPIONS}
        # These models tell no event to the second, and nothing that was not looked for is none.
        assert row["events"] is None and len(row["positive_runs"]) == len(score.runs) and row["breathing"]["ahi"] is None


def test_events_are_told_to_the_second(located_store: str, recordings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use(located_store, monkeypatch)
    model = mlflow.pyfunc.load_model("models:/sleepfm-scorer@champion")
    found = model.predict(paths(*recordings[:2])).to_dict("records")
    for row, path in zip(found, recordings, strict=False):
        score = sleepfm.score(path)
        assert row["events"] == [{"type": e.type, "onset": e.onset, "duration": e.duration} for e in score.events]
        assert {event["type"] for event in row["events"]} == {"apnea", "hypopnea"}
        assert all(event["duration"] >= 10 for event in row["events"])
        # Events and runs of positive epochs are told apart: no model here gives runs.
        assert row["positive_runs"] is None and row["breathing"]["apneas"] > 0 and row["breathing"]["hypopneas"] > 0
    assert found[0]["events"] != found[1]["events"], "of each night its own"
    body = json.dumps({"dataframe_records": [{"recording": str(path)} for path in recordings[:2]]}).encode()
    answer = invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert [row["events"] for row in json.loads(answer.response)["predictions"]] == [row["events"] for row in found]


def test_a_model_of_one_task_tells_its_events_alone(
    located_store: str, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(located_store, monkeypatch)
    address = "models:/sleepfm-hypopnea@champion"
    (row,) = mlflow.pyfunc.load_model(address).predict(paths(recordings[0])).to_dict("records")
    expected = [{"type": e.type, "onset": e.onset, "duration": e.duration} for e in sleepfm.score(recordings[0], address).events]
    assert row["events"] == expected and {event["type"] for event in expected} == {"hypopnea"}
    assert row["stages"] is None and row["hypnodensity"] is None and row["sleep"] == {}


@pytest.mark.slow
def test_bytes_are_scored_like_the_file_of_that_name(scorer: Any, recordings: list[Path]) -> None:
    given = pd.DataFrame({"edf": [recordings[0].read_bytes()], "name": [recordings[0].name]})
    assert scorer.predict(given).to_dict("records") == scorer.predict(paths(recordings[0])).to_dict("records")


@pytest.mark.slow
def test_an_encoder_gives_the_embedding_of_every_epoch(recordings: list[Path]) -> None:
    model = mlflow.pyfunc.load_model("models:/sleepfm-synthsleepnet@champion")
    (row,) = model.predict(paths(recordings[0]), params={"cohort": "shhs1"}).to_dict("records")
    encoder = sleepfm.load("models:/sleepfm-synthsleepnet@champion")
    expected = embed(encoder, prepared_epochs(prepare_night(recordings[0]), encoder.channels, 64)).numpy()
    assert np.allclose(np.array(row["embedding"], float), expected, equal_nan=True, atol=1e-6)
    assert set(row["channels"]) == set(encoder.channels)


def of_recordings(folder: Path, task: str) -> Any:
    """A package of an untrained model of ``task`` on the registered encoder, as MLflow loads it."""
    encoder = sleepfm.load("models:/sleepfm-synthsleepnet@champion")
    chosen = RECORDING_TASKS[task]
    config = RecordingModelConfig(task=task, classes=chosen.classes, unit=chosen.unit, encoder=model_config(encoder))
    torch.manual_seed(0)
    module = RecordingModel(config, build_model(config.encoder)).eval()
    assert not module.encoder.load_state_dict(encoder.state_dict(), strict=False).missing_keys
    module.centre.fill_(50.0), module.spread.fill_(10.0)
    usage = {"task": task, "classes": list(chosen.classes), "unit": chosen.unit}
    content = {"model": model_config(module), "usage": usage | ({"threshold": 1e-6} if len(chosen.classes) == 2 else {})}
    write_package(folder, module, content, "card")
    write_mlflow_files(folder, content)
    return module, mlflow.pyfunc.load_model(str(folder))


@pytest.mark.parametrize("task", ["age", "sex", "ahi-class"])
def test_a_model_of_recordings_gives_what_it_says_of_each(recordings: list[Path], tmp_path: Path, task: str) -> None:
    module, model = of_recordings(tmp_path, task)
    (row,) = model.predict(paths(recordings[0]), params={"cohort": "shhs1"}).to_dict("records")
    night = prepare_night(recordings[0])
    embedding = embed(module.encoder, prepared_epochs(night, module.channels, 64))
    with torch.no_grad():
        expected = module.predict(embedding[None], torch.ones(1, len(embedding), dtype=torch.bool))[0]
    assert row["task"] == task and row["unit"] == RECORDING_TASKS[task].unit and row["record"] == recordings[0].stem
    json.dumps(row)
    if task == "age":
        assert row["value"] == pytest.approx(expected.item(), abs=1e-3) and row["probability"] is None
        return
    classes = RECORDING_TASKS[task].classes
    assert list(row["probability"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    # Of two classes the threshold of the package names one, however improbable.
    assert row["value"] == (classes[1] if len(classes) == 2 else classes[int(expected.argmax())])


def test_a_night_without_a_usable_epoch_has_no_value() -> None:
    config = RecordingModelConfig(task="age", unit="years", encoder=model_config(build_model(ENCODER)))
    module = RecordingModel(config, build_model(config.encoder)).eval()
    night = torch.randn(6, module.dim)
    night[2] = torch.nan
    with torch.no_grad():
        expected = module.predict(night[[0, 1, 3, 4, 5]][None], torch.ones(1, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(module.of_night(night), expected)
    assert module.of_night(torch.full((6, module.dim), torch.nan)).isnan().all()


def refusal(model: Any, rows: pd.DataFrame, **params: str) -> str:
    with pytest.raises(MlflowException) as caught:
        model.predict(rows, params=params or None)
    assert caught.value.get_http_status_code() == 400
    return str(caught.value)


def test_what_is_no_night_is_refused_with_its_reason(
    scorer: Any, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nowhere.edf" in refusal(scorer, paths(tmp_path / "nowhere.edf"))
    broken = pd.DataFrame({"edf": [recordings[0].read_bytes()[:3000]]})
    said = refusal(scorer, broken)
    assert said.startswith("recording.edf: ") and "/tmp" not in said
    assert "either 'recording'" in refusal(scorer, pd.DataFrame({"recording": ["a.edf"], "edf": [b"0"]}))
    assert "expected a file's name" in refusal(scorer, pd.DataFrame({"edf": [b"0"], "name": ["../../x.edf"]}))
    assert "no recording" in refusal(scorer, pd.DataFrame())
    assert "nowhere" in refusal(scorer, paths(recordings[0]), cohort="nowhere")
    monkeypatch.setenv(LIMIT_VARIABLE, str(1000 / 2**30))
    assert "MiB fit in one request" in refusal(scorer, broken)
    monkeypatch.setenv(NIGHTS_VARIABLE, "1")
    assert "2 recordings, but at most 1 fit" in refusal(scorer, paths(*recordings[:2]))


def test_a_server_reads_below_its_folder_alone(
    scorer: Any, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVING, "true")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.edf").symlink_to(recordings[0])
    for path in (str(recordings[0]), "link.edf", "../x.edf", "s3://bucket/x.edf", "file:///etc/passwd"):
        assert "only reads recordings below its folder" in refusal(scorer, pd.DataFrame({"recording": [path]}))
    (tmp_path / "own.yaml").write_text("name: own")
    assert "a server knows auto" in refusal(scorer, paths(recordings[0]), cohort=str(tmp_path / "own.yaml"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(recordings[0].parent))
    assert len(scorer.predict(pd.DataFrame({"recording": [recordings[0].name]}))) == 1


def test_what_a_server_answers_is_json(scorer: Any, recordings: list[Path]) -> None:
    """The way of a request through MLflow's server, without the network."""
    schema = scorer.metadata.get_input_schema()
    content = base64.b64encode(recordings[0].read_bytes()).decode()
    for body in (
        {"dataframe_records": [{"edf": content, "name": recordings[0].name}]},
        {"inputs": {"edf": [content], "name": [recordings[0].name]}},
        {"inputs": {"recording": [str(recordings[0])]}},
    ):
        answer = invocations(json.dumps(body).encode(), "application/json", scorer, schema)
        (row,) = json.loads(answer.response)["predictions"]
        assert row["record"] == recordings[0].stem and len(row["stages"]) == 30 and "NaN" not in answer.response


@pytest.mark.slow
def test_the_input_example_is_one(store: str, downstream_packages: dict[str, Path]) -> None:
    folder = mlflow.artifacts.download_artifacts("models:/sleepfm-stage@champion")
    example = Model.load(folder).load_input_example(folder)
    (row,) = mlflow.pyfunc.load_model(folder).predict(example).to_dict("records")
    assert row["record"] == "example" and len(row["stages"]) == 1


def test_a_version_is_plain_files_of_which_none_is_pickled(store: str) -> None:
    entry = look_up("models:/sleepfm-stage@champion", store)
    folder = Path(mlflow.artifacts.download_artifacts(entry.source))
    # MLflow notes beside them by which name they were asked for.
    assert {file.name for file in folder.iterdir()} - {"registered_model_meta"} == {
        *("model.safetensors", "config.yaml", "MODEL_CARD.md", "MLmodel", CODE, "requirements.txt", "python_env.yaml"),
        *("conda.yaml", "input_example.json", "serving_input_example.json"),
    }
    flavour = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert list(flavour) == ["python_function"] and flavour["python_function"]["model_code_path"] == CODE
    assert "python_model" not in flavour["python_function"]
    assert str(Path.home()) not in (folder / "MLmodel").read_text() and "/tmp" not in (folder / "MLmodel").read_text()


@pytest.mark.slow
def test_the_figures_of_a_split_are_what_mlflow_evaluates(store: str, recordings: list[Path]) -> None:
    from sleepfm.serving.evaluation import stage_metrics

    nights = [prepare_night(path) for path in recordings[:2]]
    data = paths(*recordings[:2]).assign(scored=[night.stage.tolist() for night in nights])
    found = mlflow.models.evaluate(
        model="models:/sleepfm-stage@champion",
        data=data,
        targets="scored",
        predictions="stages",
        extra_metrics=stage_metrics(),
        evaluator_config={"log_model_explainability": False},
    )
    from sklearn.metrics import cohen_kappa_score

    stages = np.concatenate([sleepfm.score(path, "models:/sleepfm-stage@champion").stages for path in recordings[:2]])
    truth = np.concatenate([night.stage for night in nights])
    both = (stages >= 0) & (truth >= 0)
    assert found.metrics["kappa/all_epochs"] == pytest.approx(cohen_kappa_score(truth[both], stages[both]))


def test_a_run_of_a_scorer_holds_figures_and_data_sets_as_entities(store: str) -> None:
    entry = look_up("models:/sleepfm-scorer@champion", store)
    run = client(store).get_run(entry.run_id)
    assert run.data.metrics == {f"{task}/val/f1": 0.5 for task in CHAMPIONS}
    inputs = {item.dataset.name: json.loads(item.dataset.source)["digest"] for item in run.inputs.dataset_inputs}
    assert inputs == dict.fromkeys(CHAMPIONS, "d" * 64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["downstream", "neuronet", "recording"])
def test_the_files_are_what_mlflow_itself_would_write(tmp_path: Path, kind: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    write_mlflow_files(ours, {"model": {"kind": kind}})
    model = Model.load(str(ours))
    example = pd.DataFrame({"edf": [b"0"], "name": ["a.edf"]})
    mlflow.pyfunc.save_model(
        path=theirs,
        python_model=ours / CODE,
        signature=model.signature,
        input_example=example,
        pip_requirements=requirements(),
        metadata={"sleepfm": sleepfm.__version__},
    )
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    mine, its = (yaml.safe_load((folder / "MLmodel").read_text()) for folder in (ours, theirs))
    its["flavors"]["python_function"]["model_code_path"] = CODE
    for content in (mine, its):
        for key in ("model_uuid", "utc_time_created", "model_size_bytes"):
            content.pop(key, None)
        for key in ("cloudpickle_version", "code", "streamable"):
            assert not content["flavors"]["python_function"].pop(key, None) or key == "cloudpickle_version"
    assert mine == its
    for name in ("input_example.json", "serving_input_example.json"):
        assert (ours / name).read_text()[:20] == (theirs / name).read_text().replace("\n", "").replace("  ", "")[:20]
    # Beside the same requirements, ours may say in a comment what no installer can get.
    lines = (ours / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == (theirs / "requirements.txt").read_text().split("\n")


@pytest.mark.slow
def test_a_process_that_knows_mlflow_alone_loads_and_predicts(store: str, recordings: list[Path], tmp_path: Path) -> None:
    program = (
        "import sys, json, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/sleepfm-stage@champion')\n"
        "(row,) = model.predict(pd.DataFrame({'recording': [sys.argv[1]]})).to_dict('records')\n"
        "print(json.dumps(row['stages']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-c", program, str(recordings[0])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == sleepfm.score(recordings[0], "models:/sleepfm-stage@champion").stages.tolist()
