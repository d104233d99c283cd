"""Packages of new bests and of the last weights: load-tested, registered, and in nobody's way."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from launching import CONFIG, command, environment, launch
from ports import free_port
from safetensors.torch import load_file, save_file
from small_model import MODEL

from sleepfm.errors import RegistryError
from sleepfm.models.build import build_model, model_config
from sleepfm.registry import registry
from sleepfm.registry.load_test import LoadTest, load_test
from sleepfm.registry.package import WEIGHTS, read_config, sha256_file, verify, write_package
from sleepfm.registry.store import client as mlflow_client

pytestmark = pytest.mark.timeout(1800)

EVERY_BEST = ("registry.every_best=true", "train.steps=30", "toy.seconds=0.15")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file; making one takes longer than the toy's training."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}", create=True)
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path) -> Path:
    """A working folder with an empty store."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path


def package(folder: Path) -> Path:
    module = build_model(MODEL)
    write_package(folder, module, {"model": model_config(module)}, "# card\n")
    return folder


def rewrite(folder: Path, name: str, value: float) -> None:
    """Put ``value`` into a tensor of the package, with the digest of what is then there."""
    state = load_file(folder / WEIGHTS)
    state[name].view(-1)[0] = value
    save_file(state, folder / WEIGHTS)
    text = (folder / "config.yaml").read_text()
    before = read_config(folder)["weights"]["sha256"]
    (folder / "config.yaml").write_text(text.replace(before, sha256_file(folder / WEIGHTS)))


def test_a_package_is_loaded_and_tried(tmp_path: Path) -> None:
    good = package(tmp_path / "good")
    assert load_test(good)["embedding"] == [2, 16]
    name = next(name for name, value in load_file(good / WEIGHTS).items() if value.is_floating_point())
    rewrite(package(tmp_path / "bad"), name, float("nan"))
    with pytest.raises(Exception, match=f"{name} is not finite"):
        load_test(tmp_path / "bad")


def test_weights_from_a_file_are_the_file(tmp_path: Path) -> None:
    source = package(tmp_path / "one")
    tags = write_package(tmp_path / "two", source / WEIGHTS, {"model": MODEL}, "# card\n")
    assert tags["sha256"] == sha256_file(source / WEIGHTS)
    assert verify(tmp_path / "two", "two")["weights"]["bytes"] == (source / WEIGHTS).stat().st_size


@pytest.mark.slow
def test_a_fresh_process_loads_one_package_after_the_other(tmp_path: Path) -> None:
    good, bad = package(tmp_path / "good"), package(tmp_path / "bad")
    content = bytearray((bad / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (bad / WEIGHTS).write_bytes(bytes(content))
    with LoadTest() as fresh:
        assert fresh.check(good)["embedding"] == [2, 16]
        with pytest.raises(RegistryError, match=r"does not load in a fresh process .*the file has changed"):
            fresh.check(bad)
        assert fresh.check(good)["parameters"] == sum(p.numel() for p in build_model(MODEL).parameters())
        with pytest.raises(RegistryError, match=r"does not load in a fresh process .*no_such_module"):
            fresh.check(good, "no_such_module:build")
        psutil.Process(fresh.pid).kill()
        with pytest.raises(RegistryError, match=r"cannot be loaded in a fresh process .*status -9"):
            fresh.check(good)


def until_a_champion(folder: Path, store: str, arguments: tuple[str, ...]) -> tuple[str, str]:
    """Run the job, whose thirteenth step waits until there is a champion; the champion's step, and what the job printed."""
    flag = folder / "go"
    (folder / "toy.yaml").write_text(CONFIG)
    job = subprocess.Popen(
        command(2, *arguments, "toy.wait_at=100", f"toy.wait_flag={flag}"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 900
    while not (found := [version for version in registry.versions(store) if "champion" in version.aliases]):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    flag.touch()
    stdout, stderr = job.communicate(timeout=900)
    assert job.returncode == 0, stderr
    return found[0].tags["step"], stdout


@pytest.mark.slow
def test_every_new_best_is_registered_while_training_goes_on(folder: Path) -> None:
    store = f"sqlite:///{folder}/runs/mlflow.db"
    step, stdout = until_a_champion(folder, store, EVERY_BEST)
    assert step in ("5", "10")
    found = sorted(registry.versions(store), key=lambda version: int(version.version))
    steps = [int(version.tags["step"]) for version in found]
    # One at a time and the newest wins, so that some may have been left out.
    assert steps == sorted(steps)
    assert len(steps) >= 2 and steps[-1] == 30 and set(steps) <= set(range(5, 31, 5))
    errors = [float(version.tags["metric.val/error"]) for version in found]
    assert errors == sorted(errors, reverse=True)
    champion = registry.resolve("models:/toy@champion", store)
    assert champion.version == str(len(found))
    assert {"metric.test/one"} == champion.tags.keys() & {"metric.test/one"}
    assert not [version for version in found[:-1] if "metric.test/one" in version.tags]
    assert registry.resolve("models:/toy@last", store).version == champion.version
    for version in found:
        source = registry.resolve(f"models:/toy/{version.version}", store)
        assert verify(source.path, source.label, source.tags)["training"]["step"] == int(version.tags["step"])
        assert {"dataset_digest", "config_digest", "git_commit", "parents", "stage"} <= source.tags.keys()
    assert stdout.count("is the best so far; registered toy:") == len(found) - 1
    result = json.loads((folder / "run" / "result.json").read_text())
    assert (result["version"], result["promoted"]) == (champion.version, True)


@pytest.mark.slow
def test_the_last_weights_stand_beside_the_best(folder: Path) -> None:
    """The best is of step 10; what comes after is worse, and the champion stays."""
    done = launch(folder, 2, *EVERY_BEST, "train.validate_every=10", "toy.errors=[0.5,0.2,0.7]")
    assert done.returncode == 0, done.stderr
    store = f"sqlite:///{folder}/runs/mlflow.db"
    best, last = (registry.resolve(f"models:/toy@{alias}", store) for alias in ("champion", "last"))
    assert (best.tags["step"], last.tags["step"]) == ("20", "30")
    assert (best.tags["metric.val/error"], last.tags["metric.val/error"]) == ("0.2", "0.7")
    for name, source in (("package", best), ("last", last)):
        assert (folder / "run" / name / WEIGHTS).read_bytes() == (source.path / WEIGHTS).read_bytes()
    result = json.loads((folder / "run" / "result.json").read_text())
    assert (result["best_step"], result["last"]["step"]) == (20, 30)
    state = torch.load(
        folder / "run" / "checkpoints" / "step-00000030" / "mp_rank_00_model_states.pt", weights_only=True, map_location="cpu"
    )["module"]
    for name, value in load_file(folder / "run" / "last" / WEIGHTS).items():
        assert torch.equal(value, state[name]), name


@pytest.mark.slow
def test_a_best_that_a_kill_left_behind_is_registered_by_the_run_that_goes_on(folder: Path) -> None:
    """The store was away when the best was found; the job is killed, and goes on when the store is back."""
    arguments = (*EVERY_BEST, "toy.errors=[0.5,0.6,0.7,0.8,0.9,1]")
    (folder / "toy.yaml").write_text(CONFIG)
    # The same configuration, up to where the store is.
    waiting = ("toy.wait_at=100", f"toy.wait_flag={folder / 'go'}")
    away = [*arguments, *waiting, f"tracking.uri=http://127.0.0.1:{free_port()}"]
    job = subprocess.Popen(command(2, *away), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, deadline = folder / "run" / "trace.jsonl", time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < 9:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    assert [item.name for item in (folder / "run").glob(".export-*")] == [".export-00000005"]
    store = f"sqlite:///{folder}/runs/mlflow.db"
    step, stdout = until_a_champion(folder, store, arguments)
    assert step == "5"
    assert "step 5 is the best so far; registered toy:1 (now champion)" in stdout
    assert not list((folder / "run").glob(".export-*"))
    champion, last = (registry.resolve(f"models:/toy@{alias}", store) for alias in ("champion", "last"))
    # The best weights once more, with what `test` says of them; then the last ones.
    assert (champion.version, champion.tags["step"], champion.tags["metric.test/one"]) == ("2", "5", "1.0")
    assert (last.version, last.tags["step"]) == ("3", "30")


@pytest.mark.slow
def test_a_package_that_does_not_load_is_not_registered(folder: Path) -> None:
    done = launch(folder, 2, "toy.builder=build_wider_toy")
    assert done.returncode == 1
    assert "does not load in a fresh process" in done.stderr
    assert "does not fit its configuration" in done.stderr
    assert not (folder / "run" / "result.json").exists()
    assert registry.versions(f"sqlite:///{folder}/runs/mlflow.db") == []
