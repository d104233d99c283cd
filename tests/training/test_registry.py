"""Packages and the registry: what goes in comes out, and a changed byte does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_model import MODEL
from torch import nn

from sleepfm.cli import main
from sleepfm.errors import ModelError, RegistryError
from sleepfm.models.build import build_model, model_config
from sleepfm.registry import registry
from sleepfm.registry.lineage import lineage
from sleepfm.registry.package import CONFIG, WEIGHTS, load_weights, read_config, verify, write_package
from sleepfm.registry.store import DEFAULT_STORE, experiment_id
from sleepfm.registry.store import client as mlflow_client


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(3)
    return build_model(MODEL).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder of the tests that share a store: making one takes seconds."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    return DEFAULT_STORE


def publish(module: nn.Module, store: str, name: str, value: float, parents: tuple[str, ...] = ()) -> str:
    """A new version of ``name`` whose validation figure is ``value``."""
    client = mlflow_client(store, create=True)
    run = client.create_run(experiment_id(client, store, "test"))
    folder = Path("packages") / f"{name}-{value}-{run.info.run_id}"
    tags = write_package(folder, module, {"model": model_config(module), "note": value}, "# card\n", {"a": "b"})
    version = registry.register(name, folder, run.info.run_id, tags, {"val/kappa": value}, parents, store)
    again = registry.register(name, folder, run.info.run_id, tags, {"val/kappa": value}, parents, store)
    assert again == version
    return version


def test_a_package_gives_back_the_module_bit_for_bit(tmp_path: Path, module: nn.Module) -> None:
    tags = write_package(tmp_path, module, {"model": model_config(module)}, "# card\n")
    assert tags["sha256"] == read_config(tmp_path)["weights"]["sha256"]
    loaded = registry.load(tmp_path)
    assert not loaded.training
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    signals = {"ECG": torch.randn(2, 3000)}
    assert torch.equal(loaded.embed(signals), module.embed(signals))


def test_weights_are_stored_in_fp32_whatever_they_were_trained_in(tmp_path: Path) -> None:
    half = nn.BatchNorm1d(3).to(torch.bfloat16)
    write_package(tmp_path, half, {"model": {}}, "")
    kinds = {name: value.dtype for name, value in load_file(tmp_path / WEIGHTS).items()}
    assert kinds.pop("num_batches_tracked") == torch.int64
    assert set(kinds.values()) == {torch.float32}


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_changed_byte_is_refused(store: str, module: nn.Module, file: str) -> None:
    name = f"changed-{file}"
    publish(module, store, name, 0.5)
    found = registry.resolve(f"models:/{name}/1")
    path = found.path / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match=rf"{file}.*(changed|YAML)"):
        registry.load(f"models:/{name}/1")


def test_a_package_without_a_file_or_of_another_shape_is_refused(tmp_path: Path, module: nn.Module) -> None:
    with pytest.raises(RegistryError, match="not a model folder"):
        registry.load(tmp_path)
    with pytest.raises(RegistryError, match="no such folder"):
        registry.load(tmp_path / "nowhere")
    write_package(tmp_path, module, {"model": model_config(module)}, "")
    with pytest.raises(ModelError, match="does not fit"):
        load_weights(nn.Linear(2, 2), tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(RegistryError, match="missing"):
        verify(tmp_path, "it")


def test_what_is_not_there_is_named_with_what_is(
    store: str, module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(module, store, "named", 0.5)
    with pytest.raises(RegistryError, match=r"no alias 'champion'.*version 1 and alias none"):
        registry.resolve("models:/named@champion")
    with pytest.raises(RegistryError, match="no version 7"):
        registry.resolve("models:/named/7")
    with pytest.raises(RegistryError, match=r"registered models: .*named"):
        registry.resolve("models:/unnamed@champion")
    with pytest.raises(RegistryError, match="expected models:/NAME@ALIAS"):
        registry.resolve("models:/named")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=r"no registry at runs/mlflow\.db"):
        registry.resolve("models:/named@champion")
    assert not Path("runs").exists()


def test_a_mistyped_name_is_answered_with_the_names_that_are_there(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    client = mlflow_client(DEFAULT_STORE, create=True)
    assert main(["models"]) == 0
    assert main(["models", "--name", "sleepfm-stage"]) == 1
    told = capsys.readouterr()
    assert "no models registered yet" in told.out and told.err.endswith("is registered; registered models: none\n")
    for name in ("sleepfm-apnea", "sleepfm-stage", "other"):
        client.create_registered_model(name)
        client.create_model_version(name, source="file:///nowhere")
    there = "registered models: sleepfm-stage, sleepfm-apnea, other\n"
    for words in (["--json"], []):
        assert main(["models", "--name", "sleepfm-stag", *words]) == 1
        said = f"error: {DEFAULT_STORE}: no version of 'sleepfm-stag' is registered; {there}"
        assert capsys.readouterr() == ("", said)
    assert main(["models", "prune", "sleepfm-stag"]) == 1
    assert capsys.readouterr().err.endswith(there)
    assert main(["models", "promote", "sleepfm-stag", "1"]) == 1
    assert capsys.readouterr().err.endswith(there)


def test_lineage_goes_back_to_the_first_parents(store: str, module: nn.Module) -> None:
    publish(module, store, "sleepfm-a", 0.1)
    publish(module, store, "sleepfm-b", 0.2, ("sleepfm-a:1",))
    publish(module, store, "sleepfm-c", 0.3, ("sleepfm-b:1", "sleepfm-a:1"))
    tree = lineage("sleepfm-c", "1")
    assert [parent["name"] for parent in tree["parents"]] == ["sleepfm-b", "sleepfm-a"]
    assert tree["parents"][0]["parents"][0]["name"] == "sleepfm-a"
    listed = [(version.name, version.version) for version in registry.versions()]
    assert [name for name, _ in listed if name.startswith("sleepfm")] == ["sleepfm-a", "sleepfm-b", "sleepfm-c"]


def test_lineage_knows_folders_and_what_is_gone_and_fetches_nothing(
    store: str, module: nn.Module, folder: Path, tmp_path: Path
) -> None:
    publish(module, store, "first", 0.1)
    training = {"dataset_digest": "d" * 64, "parents": ["first:1", str(tmp_path / "gone")]}
    tags = write_package(tmp_path / "it:1", module, {"model": model_config(module), "training": training}, "")
    publish(module, store, "second", 0.2, (str(tmp_path / "it:1"), "first:9", "never:1"))
    shutil.rmtree(folder / "runs" / "mlartifacts")
    tree = lineage("second", "1")
    unregistered, deleted, never = tree["parents"]
    assert unregistered["tags"] == {"sha256": tags["sha256"], "dataset_digest": "d" * 64}
    assert (unregistered["name"], unregistered["version"]) == (str(tmp_path / "it:1"), "")
    assert [parent["name"] for parent in unregistered["parents"]] == ["first", str(tmp_path / "gone")]
    assert unregistered["parents"][0]["tags"]["sha256"] and unregistered["parents"][1]["tags"] == {}
    assert [(deleted["name"], deleted["version"]), (never["name"], never["version"])] == [("first", "9"), ("never", "1")]
    with pytest.raises(RegistryError, match="no version 2"):
        lineage("second", "2")


def test_a_listing_reads_every_page(store: str) -> None:
    client = mlflow_client(store, create=True)
    names = [f"page-{number:03}" for number in range(101)]
    for name in names:
        client.create_registered_model(name)
    client.create_model_version(names[-1], source="file:///nowhere")
    assert names[-1] in {version.name for version in registry.versions()}
    with pytest.raises(RegistryError, match=r"registered models: .*page-100"):
        registry.resolve("models:/unnamed@champion")


def test_a_moved_folder_still_resolves(
    store: str, module: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(module, store, "moved", 0.5)
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.rmtree(registry.resolve("models:/moved/1").path)
    monkeypatch.chdir(tmp_path)
    assert registry.load("models:/moved/1").state_dict().keys() == module.state_dict().keys()


CREATE = """
import sys
from sleepfm.registry.store import client as mlflow_client, experiment_id
print("ready", flush=True)
client = mlflow_client(sys.argv[1], create=True)
run = client.create_run(experiment_id(client, sys.argv[1], "test"))
client.log_metric(run.info.run_id, "loss", 1.0)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_that_start_together_share_one_whole_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", CREATE, uri]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for job in jobs:
        _, stderr = job.communicate(timeout=600)
        assert job.returncode == 0, stderr
    client = mlflow_client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments(filter_string="name = 'test'")]
    assert len(experiments) == 1
    assert len(client.search_runs(experiments)) == 4
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mlflow.db"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_while_a_store_is_made_leaves_none(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    command = [sys.executable, "-c", CREATE, f"sqlite:///{folder}/mlflow.db"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE)
    while not list(folder.glob(".mlflow.db.*.tmp")):
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not (folder / "mlflow.db").exists()
    subprocess.run(command, check=True, timeout=600)
    assert (folder / "mlflow.db").exists()
