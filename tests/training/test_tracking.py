"""Figures reach MLflow, or wait on disk until they can."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sleepfm import registry
from sleepfm.errors import RegistryError
from sleepfm.training.tracking import Tracker, flatten


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


def tracker(output: Path, uri: str) -> Tracker:
    output.mkdir(exist_ok=True)
    artifact = output / "config.yaml"
    artifact.write_text("train: {}\n")
    parameters = {"train": {"lr": 0.1, "betas": [0.9, 0.99]}, "long": "x" * 9000}
    return Tracker(output, uri, "tests", "toy", parameters, {"dataset_digest": "abc"}, (artifact,))


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in registry.client(uri).get_metric_history(run_id, key)]


def test_a_run_holds_its_parameters_figures_and_configuration(tmp_path: Path, store: str) -> None:
    first = tracker(tmp_path, store)
    for step in range(1, 50):
        first.log(step, {"train/loss": 1.0 / step, "train/grad_norm": math.nan})
    run_id = first.wait_for_run()
    assert first.close() == ""
    run = registry.client(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.1"
    assert run.data.tags["dataset_digest"] == "abc"
    assert history(store, run_id) == [(step, 1.0 / step) for step in range(1, 50)]
    assert [item.path for item in registry.client(store).list_artifacts(run_id)] == ["config.yaml"]


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
    assert registry.client(store).get_run(run_id).info.status == "FINISHED"


def test_logging_never_waits_and_nothing_is_lost_without_a_server(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    lost = tracker(tmp_path, nowhere)
    began = time.perf_counter()
    for step in range(100):
        lost.log(step, {"train/loss": float(step)})
    assert time.perf_counter() - began < 0.5
    with pytest.raises(RegistryError, match="no answer"):
        lost.wait_for_run(0.1)
    assert "100 rows of figures not delivered" in lost.close(patience_seconds=1.0)
    found = tracker(tmp_path, store)
    run_id = found.wait_for_run()
    assert found.close() == ""
    assert history(store, run_id) == [(step, float(step)) for step in range(100)]
    assert not (tmp_path / "undelivered.jsonl").exists()


def test_nested_parameters_become_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


@pytest.mark.slow
def test_figures_arrive_although_the_server_is_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"

    def serve() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
        command += ["--artifacts-destination", str(tmp_path / "artifacts")]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            time.sleep(0.2)
        raise AssertionError("the server did not start")

    def kill(server: subprocess.Popen[bytes]) -> None:
        import os
        import signal

        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    server = serve()
    found = tracker(tmp_path / "out", uri)
    run_id = found.wait_for_run()
    found.log(1, {"train/loss": 1.0})
    time.sleep(2)
    kill(server)
    for step in range(2, 40):
        found.log(step, {"train/loss": float(step)})
        time.sleep(0.05)
    server = serve()
    try:
        assert found.close(patience_seconds=60) == ""
        assert history(uri, run_id) == [(step, float(step)) for step in range(1, 40)]
    finally:
        kill(server)
