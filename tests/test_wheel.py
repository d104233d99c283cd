"""An installed wheel, away from the checkout: configurations are found by their documented names, and the whole chain runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
IN_SOURCE = ("sleepfm", "shards", "launch", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, so that nothing is left behind in it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in IN_SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    return next((folder / "dist").glob("sleepfm-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, which borrows everything else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # Paths in a .pth are searched, but the .pth files in them, such as that of an editable install, are not read.
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return folder / "bin" / "python"


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(python: Path, folder: Path, *words: str) -> str:
    """What ``python WORDS`` prints in ``folder``, which ends well."""
    dropped = ("MLFLOW_", "RAY_", "PYTHON")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run([str(python), *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


FIND = """
import json, sys, sleepfm, launch.pretrain
from sleepfm.config import read_yaml
from sleepfm.paths import find_config
found = {name: str(find_config(name)) for name in sys.argv[1:]}
assert all(isinstance(read_yaml(path), dict) for path in found.values())
print(json.dumps({"package": sleepfm.__file__, "found": found}))
"""


def test_every_configuration_is_found_by_its_documented_name(python: Path, tmp_path: Path) -> None:
    names = [*CONFIGS, *(name.removeprefix("configs/") for name in CONFIGS)]
    answer = json.loads(run(python, tmp_path, "-c", FIND, *names))
    environment = python.parents[1]
    assert Path(answer["package"]).is_relative_to(environment)
    for name, path in answer["found"].items():
        shipped = ROOT / "configs" / name.removeprefix("configs/")
        assert Path(path).is_relative_to(environment) and Path(path).read_bytes() == shipped.read_bytes(), name


def test_a_wheel_in_a_folder_of_its_own_finds_its_configurations(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path / "lib"), str(wheel))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r})\nfrom sleepfm.paths import config_root; print(config_root())"
    )
    assert run(Path(sys.executable), tmp_path, "-c", program).strip() == str(tmp_path / "lib" / "share" / "sleepfm" / "configs")


def test_a_file_of_the_users_comes_before_a_shipped_one(python: Path, tmp_path: Path) -> None:
    own = tmp_path / "configs" / "pretrain" / "eeg-tiny.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("extends: context-tiny.yaml\n")
    answer = json.loads(run(python, tmp_path, "-c", FIND, "configs/pretrain/eeg-tiny.yaml"))
    assert answer["found"] == {"configs/pretrain/eeg-tiny.yaml": "configs/pretrain/eeg-tiny.yaml"}


@pytest.mark.slow
def test_the_whole_chain_runs_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    printed = run(python, tmp_path, "-m", "sleepfm.demo", "--config", "demo/miniature.yaml", "--seed", "3", "processes=2")
    assert re.search(r"13 steps, [\d.]+ minutes", printed)
    assert (tmp_path / "runs" / "demo" / "report" / "index.html").stat().st_size > 10_000
    # As the manual names the jobs where there is no checkout.
    deepspeed = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_gpus",
        "1",
        "--master_port",
        str(free_port()),
        "--module",
    ]
    # In a folder of its own: a dry run refuses what a start refuses, here the demo's run of another size.
    paths = ["data.path=runs/demo/shards", "train.output=runs/dry"]
    job = ["launch.pretrain", "configs/pretrain/eeg-tiny.yaml", *paths, "--dry-run"]
    assert "GFLOP an item" in run(python, tmp_path, *deepspeed, *job)
