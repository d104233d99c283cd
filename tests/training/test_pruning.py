"""Which versions of a run stay registered, in MLflow's own stores: a SQLite file, and a server that keeps the artifacts."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow_server import Server
from small_model import MODEL

from sleepfm.config import validate
from sleepfm.models.build import build_model, model_config
from sleepfm.registry import artifacts, registry
from sleepfm.registry.package import write_package
from sleepfm.registry.promotion import promote, promote_by_hand
from sleepfm.registry.pruning import prune
from sleepfm.registry.store import client, experiment_id, sqlite_file, versions_of
from sleepfm.training.export import register
from sleepfm.training.folder import RunFolder
from sleepfm.training.run_config import RunConfig

METRIC = "val/kappa"
NUMBERS = itertools.count()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    if request.param == "sqlite":
        uri = f"sqlite:///{folder}/mlflow.db"
        client(uri, create=True)
        yield uri
        return
    server = Server(folder)
    server.start()
    yield server.uri
    server.kill()


class Run:
    """A run that registers one best after the other, as the exporter does."""

    def __init__(self, store: str, folder: Path, parents: tuple[str, ...] = (), name: str = "") -> None:
        self.name = name or f"model-{next(NUMBERS)}"
        self.store, self.folder, self.parents = store, folder, parents
        mlflow_client = client(store)
        self.id = mlflow_client.create_run(experiment_id(mlflow_client, store, "test")).info.run_id

    def best(self, value: float, automatic: bool = True, seed: int | None = None) -> str:
        torch.manual_seed(next(NUMBERS) if seed is None else seed)
        module = build_model(MODEL)
        package = self.folder / f"package-{next(NUMBERS)}"
        tags = write_package(package, module, {"model": model_config(module), "value": value}, "card", {"stage": "toy"})
        add = (tags, {METRIC: value}, self.parents, self.store)
        return registry.register(self.name, package, self.id, *add, automatic=automatic)

    def bests(self, *values: float) -> None:
        for value in values:
            promote(self.name, self.best(value), METRIC, store=self.store)

    def prune(self, keep: int) -> list[str]:
        return prune(self.name, self.id, keep, self.store)

    def versions(self) -> list[str]:
        return [str(version.version) for version in versions_of(client(self.store), self.name)]

    def artifacts(self) -> set[str]:
        return {item.path for item in client(self.store).list_artifacts(self.id)}


def test_the_newest_bests_stay_and_the_files_of_the_others_go(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    run.bests(0.1, 0.2, 0.3, 0.4)
    assert len(run.artifacts()) == 4
    assert run.prune(2) == ["1", "2"]
    assert run.versions() == ["3", "4"]
    kept = {version.tags["artifacts"] for version in versions_of(client(store), run.name)}
    assert run.artifacts() == kept and len(kept) == 2
    for number in ("3", "4"):
        registry.load(f"models:/{run.name}/{number}", store)
    assert run.prune(2) == []


def test_champions_aliases_and_parents_stay(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    run.bests(0.9, 0.1, 0.2, 0.3, 0.4, 0.5)
    registry.name_version(run.name, "2", "last", store)
    Run(store, tmp_path, parents=(f"{run.name}:3",)).best(0.5)
    # A job that has begun from a version and registered nothing yet.
    client(store).set_tag(Run(store, tmp_path).id, "parents", f'["{run.name}:4"]')
    assert run.prune(1) == ["5"]
    assert run.versions() == ["1", "2", "3", "4", "6"]


def test_what_a_person_registered_or_touched_stays(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    run.best(0.1, automatic=False)
    for value in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        run.best(value)
    mlflow_client = client(store)
    mlflow_client.set_model_version_tag(run.name, "2", "note", "for the paper")
    mlflow_client.set_model_version_tag(run.name, "3", "stage", "mine")
    mlflow_client.update_model_version(run.name, "4", description="looked at")
    # The same files under another name, as `mlflow.register_model` does it.
    mlflow_client.create_registered_model(f"{run.name}-copy")
    source = mlflow_client.get_model_version(run.name, "5").source
    mlflow_client.create_model_version(f"{run.name}-copy", source=source, run_id=run.id)
    promote_by_hand(f"models:/{run.name}/6", store=store)
    mlflow_client.delete_registered_model_alias(run.name, "champion")
    assert run.prune(1) == ["7"]
    for number in ("1", "2", "3", "4", "5", "6", "8"):
        registry.load(f"models:/{run.name}/{number}", store)


def test_other_runs_of_the_same_name_are_left_alone(store: str, tmp_path: Path) -> None:
    first = Run(store, tmp_path)
    first.bests(0.1, 0.2)
    second = Run(store, tmp_path, name=first.name)
    second.bests(0.3, 0.4)
    assert second.prune(1) == ["3"]
    assert first.versions() == ["1", "2", "4"]
    assert len(first.artifacts()) == 2


def test_packages_of_the_same_weights_are_both_whole(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    for value in (0.1, 0.2, 0.3):
        run.best(value, seed=5)
    for number in ("1", "2", "3"):
        registry.load(f"models:/{run.name}/{number}", store)
    run.prune(1)
    registry.load(f"models:/{run.name}/3", store)


def test_a_kill_between_version_and_files_leaves_no_files_for_good(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(store, tmp_path)
    run.bests(0.1, 0.2, 0.3)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sleepfm.registry.pruning.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run.prune(1)
    assert run.versions() == ["3"] and len(run.artifacts()) == 3
    run.prune(1)
    assert len(run.artifacts()) == 1


def test_figures_that_come_later_do_not_make_a_version_a_persons(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    run.best(0.1)
    tags = client(store).get_model_version(run.name, "1").tags
    package = next(tmp_path.glob("package-*"))
    digests = {key: tags[key] for key in ("sha256", "sha256.config")}
    assert registry.register(run.name, package, run.id, digests | {"more": "1"}, {}, (), store, automatic=True) == "1"
    run.best(0.2)
    assert run.prune(1) == ["1"]


def test_of_a_store_that_was_copied_the_original_keeps_its_files(store: str, tmp_path: Path) -> None:
    original = sqlite_file(store)
    if original is None:
        pytest.skip("a server is not copied by copying a folder")
    run = Run(store, tmp_path)
    run.bests(0.1, 0.2)
    shutil.copytree(original.parent, tmp_path / "copied")
    assert prune(run.name, run.id, 1, f"sqlite:///{tmp_path}/copied/mlflow.db") == ["1"]
    assert len(list((tmp_path / "copied").glob(f"mlartifacts/{run.id}/artifacts/*"))) == 1
    for number in ("1", "2"):
        registry.load(f"models:/{run.name}/{number}", store)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_nothing_but_a_folder_of_the_run_is_removed(store: str, tmp_path: Path, name: str) -> None:
    run = Run(store, tmp_path)
    run.best(0.1)
    with pytest.raises(ValueError, match="no folder"):
        artifacts.remove(client(store), run.id, name, store)
    assert len(run.artifacts()) == 1


class Delay:
    """Passes on what is sent to a server at once, and answers to uploads after some seconds."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port, self._seconds = port, seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._port))
            uploads: list[bool] = []
            threading.Thread(target=self._pass, args=(here, there, uploads, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, here, uploads, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, uploads: list[bool], answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if not answers and data.startswith(b"PUT "):
                    uploads.append(True)
                if answers and uploads:
                    uploads.clear()
                    time.sleep(self._seconds)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_an_upload_is_waited_for_longer_than_any_other_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "server")
    server.start()
    delay = Delay(server.port, 10.0)
    try:
        # A server's first answers take seconds.
        Run(server.uri, tmp_path).best(0.1)
        # Not the same run: MLflow keeps the address that it once used for a run.
        run = Run(delay.uri, tmp_path)
        for name, value in (("TIMEOUT", "5"), ("MAX_RETRIES", "1")):
            monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
        # What MLflow itself does with these settings.
        (tmp_path / "file").write_text("x")
        with pytest.raises(Exception, match=r"[Tt]imed out|timeout"):
            client(delay.uri).log_artifact(run.id, str(tmp_path / "file"))
        version = run.best(0.5)
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
        registry.load(f"models:/{run.name}/{version}", server.uri)
    finally:
        delay.close()
        server.kill()


UPLOAD = """
import resource, sys
from pathlib import Path
from sleepfm.registry.artifacts import upload
from sleepfm.registry.store import client, experiment_id
store, folder = sys.argv[1:]
mlflow_client = client(store)
run = mlflow_client.create_run(experiment_id(mlflow_client, store, "test")).info.run_id
(Path(folder) / "small").mkdir()
(Path(folder) / "small" / "file").write_text("x")
upload(mlflow_client, run, Path(folder) / "small", "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
upload(mlflow_client, run, Path(folder) / "large", "large")
print(run, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_what_a_job_registers_on_its_way_is_bounded_and_what_it_leaves_at_its_end_stays(store: str, tmp_path: Path) -> None:
    run = Run(store, tmp_path)
    values = {
        "train": {"output": str(tmp_path / "run"), "steps": 1, "lr": 0.1},
        "registry": {"name": run.name, "metric": METRIC, "keep": 1},
    }
    config = validate(RunConfig, values, "test")
    folder = RunFolder(tmp_path / "run")
    for value, finished in ((0.1, False), (0.2, False), (0.3, False), (0.4, True)):
        torch.manual_seed(int(10 * value))
        shutil.rmtree(folder.package, ignore_errors=True)
        module = build_model(MODEL)
        tags = write_package(folder.package, module, {"model": model_config(module)}, "card")
        result = {"tags": tags, "metrics": {METRIC: value}, "parents": [], "finished": finished, "last": None}
        register(config, result, run.id, store)
    assert run.versions() == ["3", "4"]
    assert len(run.artifacts()) == 2
    mlflow_client = client(store)
    assert {alias: str(mlflow_client.get_model_version_by_alias(run.name, alias).version) for alias in ("champion", "last")} == {
        "champion": "4",
        "last": "4",
    }


@pytest.mark.slow
def test_a_package_of_1200_megabytes_is_streamed(tmp_path: Path) -> None:
    size = 1_200_000_000
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "model.safetensors").open("wb") as file:
        file.truncate(size)
    server = Server(tmp_path / "server")
    server.start()
    try:
        command = [sys.executable, "-c", UPLOAD, server.uri, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        run, grown = done.stdout.split()
        assert int(grown) * 1024 < 50e6
        (found,) = client(server.uri).list_artifacts(run, "large")
        assert found.file_size == size
    finally:
        server.kill()
