"""Figures reach MLflow, or wait on disk until they can."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import CONFIG, command, environment, launch, trace
from mlflow_server import Server
from ports import free_port

from sleepfm.errors import RegistryError
from sleepfm.registry import registry
from sleepfm.registry.package import verify
from sleepfm.registry.store import client as mlflow_client
from sleepfm.training.tracking import machine
from sleepfm.training.tracking.machine import Sampler
from sleepfm.training.tracking.tracker import Tracker, flatten, undelivered


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file without any run; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}", create=True).search_experiments()
    return path


@pytest.fixture(scope="module")
def store(empty_store: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, empty_store.with_name('shared.db'))}"


def tracker(output: Path, uri: str, **measured: object) -> Tracker:
    output.mkdir(exist_ok=True)
    artifact = output / "config.yaml"
    artifact.write_text("train: {}\n")
    parameters = {"train": {"lr": 0.1, "betas": [0.9, 0.99]}, "long": "x" * 9000} | measured
    return Tracker(output, uri, "tests", "toy", parameters, {"dataset_digest": "abc"}, (artifact,))


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in mlflow_client(uri).get_metric_history(run_id, key)]


def test_a_run_holds_its_parameters_figures_and_configuration(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store)
    for step in range(1, 50):
        first.log(step, {"train/loss": 1.0 / step, "train/grad_norm": math.nan})
    run_id = first.wait_for_run()
    assert first.close() == ""
    run = mlflow_client(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.1"
    assert run.data.tags["dataset_digest"] == "abc"
    assert history(store, run_id) == [(step, 1.0 / step) for step in range(1, 50)]
    assert [item.path for item in mlflow_client(store).list_artifacts(run_id)] == ["config.yaml"]


def test_a_resumed_job_continues_the_same_run(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store)
    first.log(1, {"train/loss": 2.0})
    run_id = first.wait_for_run()
    first.close("KILLED")
    second = tracker(tmp_path, store)
    second.log(2, {"train/loss": 1.0})
    assert second.wait_for_run() == run_id
    second.close()
    assert history(store, run_id) == [(1, 2.0), (2, 1.0)]
    assert mlflow_client(store).get_run(run_id).info.status == "FINISHED"


def test_logging_never_waits_and_nothing_is_lost_without_a_server(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = f"http://127.0.0.1:{free_port()}"
    lost = tracker(tmp_path, nowhere)
    began = time.perf_counter()
    for step in range(100):
        lost.log(step, {"train/loss": float(step)})
    assert time.perf_counter() - began < 0.5
    with pytest.raises(RegistryError, match="no answer"):
        lost.wait_for_run(0.1)
    warning = lost.close(patience_seconds=1.0)
    assert "100 rows of figures not delivered" in warning
    assert "start the same command again" in warning
    assert undelivered(tmp_path)
    found = tracker(tmp_path, store)
    run_id = found.wait_for_run()
    assert found.close() == ""
    assert history(store, run_id) == [(step, float(step)) for step in range(100)]
    assert not undelivered(tmp_path)


def test_a_job_that_repeats_steps_after_a_kill_doubles_nothing(tmp_path: Path, store: str) -> None:
    """Killed at step 6 with the checkpoint of step 4; the kill also hit between delivery and its record."""
    first = tracker(tmp_path, store)
    for step in range(1, 7):
        first.log(step, {"train/loss": 1.0 / step})
    run_id = first.wait_for_run()
    first.close("KILLED")
    state = json.loads((tmp_path / "tracking.json").read_text())
    assert state["delivered"] == (tmp_path / "figures.jsonl").stat().st_size
    (tmp_path / "tracking.json").write_text(json.dumps(state | {"delivered": 0}))
    second = tracker(tmp_path, store)
    for step in range(5, 9):
        second.log(step, {"train/loss": 1.0 / step})
    assert second.close() == ""
    assert history(store, run_id) == [(step, 1.0 / step) for step in range(1, 9)]


def test_a_run_whose_id_never_arrived_is_found_again(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store)
    first.log(1, {"train/loss": 1.0})
    run_id = first.wait_for_run()
    first.close()
    state = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps(state | {"run_id": "", "described": False}))
    second = tracker(tmp_path, store)
    assert second.wait_for_run() == run_id
    second.close()
    assert history(store, run_id) == [(1, 1.0)]


def test_what_a_killed_job_had_told_of_its_machine_stays_and_the_rest_follows(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store, peak="9.854e+10")
    run_id = first.wait_for_run()
    first.close()
    # Killed before it had noted that the store knows its parameters.
    state = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps(state | {"described": False}))
    second = tracker(tmp_path, store, peak="8.899e+10", unsaid="yes")
    second.log(1, {"train/loss": 1.0})
    assert second.wait_for_run() == run_id
    assert second.close() == ""
    params = mlflow_client(store).get_run(run_id).data.params
    assert (params["peak"], params["unsaid"]) == ("9.854e+10", "yes")
    assert history(store, run_id) == [(1, 1.0)]


def test_a_store_that_was_lost_is_given_everything_again(tmp_path: Path, store: str, empty_store: Path) -> None:
    output = tmp_path / "out"
    first = tracker(output, store)
    for step in range(1, 20):
        first.log(step, {"train/loss": float(step)})
    lost = first.wait_for_run()
    first.close()
    new = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'new.db')}"
    second = tracker(output, new)
    second.log(20, {"train/loss": 20.0})
    run_id = second.wait_for_run()
    assert second.close() == ""
    assert run_id != lost
    assert history(new, run_id) == [(step, float(step)) for step in range(1, 21)]
    assert mlflow_client(new).get_run(run_id).data.params["train.lr"] == "0.1"


def test_a_run_that_was_removed_from_its_store_is_made_again(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store)
    first.log(1, {"train/loss": 1.0})
    lost = first.wait_for_run()
    first.close()
    state = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps(state | {"run_id": "f" * 32, "key": "e" * 32}))
    second = tracker(tmp_path, store)
    second.log(2, {"train/loss": 2.0})
    assert second.close(patience_seconds=60) == ""
    run_id = second.run_id
    assert run_id not in (lost, "f" * 32)
    assert history(store, run_id) == [(1, 1.0), (2, 2.0)]


def test_nested_parameters_become_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = Server(tmp_path / "server")
    yield found
    found.kill()


@pytest.mark.slow
def test_figures_arrive_although_the_server_is_killed_and_started_again(tmp_path: Path, server: Server) -> None:
    server.start()
    found = tracker(tmp_path / "out", server.uri)
    run_id = found.wait_for_run()
    # Killed in the middle of deliveries, twice, so that a batch may be stored but never acknowledged.
    for step in range(1, 240):
        found.log(step, {"train/loss": float(step), "train/lr": 1.0 / step})
        time.sleep(0.02)
        if step in (60, 160):
            server.kill()
        if step in (100, 200):
            server.start()
    assert found.close(patience_seconds=60) == ""
    assert history(server.uri, run_id) == [(step, float(step)) for step in range(1, 240)]
    assert history(server.uri, run_id, "train/lr") == [(step, 1.0 / step) for step in range(1, 240)]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_job_outlives_its_server_and_delivers_and_registers_when_it_is_back(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real launcher: the server dies in the run and stays away; the same command, later, trains nothing and delivers all."""
    server.start()
    arguments = [f"tracking.uri={server.uri}", "train.steps=30", "train.log_every=1", "toy.seconds=0.1"]
    (tmp_path / "toy.yaml").write_text(CONFIG)
    job = subprocess.Popen(
        command(2, *arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    path = tmp_path / "run" / "trace.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < 8:
        assert job.poll() is None
        time.sleep(0.05)
    server.kill()
    _, stderr = job.communicate(timeout=900)
    assert job.returncode == 1
    assert "start the same command again when the store answers" in stderr
    assert "rows of figures not delivered" in stderr
    before = path.read_bytes()
    assert len(before.splitlines()) == 30
    assert "version" not in json.loads((tmp_path / "run" / "result.json").read_text())
    run_id = json.loads((tmp_path / "run" / "tracking.json").read_text())["run_id"]
    server.start()
    again = launch(tmp_path, 2, *arguments)
    assert again.returncode == 0, again.stderr
    assert "registered as toy:1" in again.stdout
    assert path.read_bytes() == before
    assert history(server.uri, run_id) == [(row["step"], row["loss"]) for row in trace(tmp_path)]
    found = mlflow_client(server.uri).get_model_version_by_alias("toy", "champion")
    assert (found.version, found.run_id) in {("1", run_id), (1, run_id)}
    assert mlflow_client(server.uri).get_run(run_id).info.status == "FINISHED"
    resolved = registry.resolve("models:/toy@champion", server.uri)
    assert (resolved.path / "model.safetensors").read_bytes() == (tmp_path / "run" / "package" / "model.safetensors").read_bytes()
    assert verify(resolved.path, resolved.label, resolved.tags)["weights"]["sha256"] == resolved.tags["sha256"]
    # Another machine has only the server; a byte that changed there is refused.
    (stored,) = (tmp_path / "server" / "artifacts").rglob("model.safetensors")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(RegistryError, match=r"model\.safetensors: SHA-256 "):
        changed = registry.resolve("models:/toy@champion", server.uri)
        verify(changed.path, changed.label, changed.tags)


@pytest.mark.slow
def test_a_killed_and_resumed_job_has_one_history_equal_to_its_trace(tmp_path: Path) -> None:
    arguments = ["train.log_every=1", "toy.kill_at=[50]", "toy.kill_flag=killed.flag"]
    assert launch(tmp_path, 2, *arguments).returncode != 0
    state = json.loads((tmp_path / "run" / "tracking.json").read_text())
    done = launch(tmp_path, 2, *arguments)
    assert done.returncode == 0, done.stderr
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    run_ids = [run.info.run_id for run in mlflow_client(store).search_runs(["1"])]
    assert len(run_ids) == 1
    assert state["run_id"] in ("", run_ids[0])
    rows = trace(tmp_path)
    assert history(store, run_ids[0]) == [(row["step"], row["loss"]) for row in rows]
    assert history(store, run_ids[0], "train/grad_norm") == [(row["step"], row["grad_norm"]) for row in rows]
    run = mlflow_client(store).get_run(run_ids[0])
    assert {"speed/mfu", "speed/epochs_per_s", "speed/data_wait", "train/lr", "val/error"} <= run.data.metrics.keys()
    assert float(run.data.params["run.step_flops"]) > 0
    assert [item.path for item in mlflow_client(store).list_artifacts(run_ids[0])][:2] == ["config.yaml", "environment.json"]
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["dataset_digest"][:36]


def test_the_host_is_sampled_under_the_names_of_mlflow(tmp_path: Path) -> None:
    samples: list[dict[str, float]] = []
    sampler = Sampler(tmp_path, samples.append, seconds=0.05)
    deadline = time.monotonic() + 20
    while len(samples) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.close()
    assert len(samples) >= 2
    sample = samples[-1]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= sample.keys()
    assert sample["system/process_memory_megabytes"] == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)
    facts = machine.environment("abc")
    assert facts["git_commit"] == "abc"
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")


def test_what_a_store_could_not_be_told_hides_neither_the_error_that_follows_nor_shows_a_password(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "http://user:secret@127.0.0.1:9", "test", "toy")
    warning = tracker.close("FAILED", 1.0)
    assert warning.startswith(
        "http://user:***@127.0.0.1:9: still shows the run as running, because FAILED could not be written ("
    )
    assert warning.endswith("); the error that ended the run follows")
    assert "secret" not in (tmp_path / "tracking.json").read_text()
