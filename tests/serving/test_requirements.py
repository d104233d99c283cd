"""What a model of MLflow's says it needs: versions that an index has, and this project where an installer can get it."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

import sleepfm
from sleepfm.cli import main
from sleepfm.registry.mlflow_model import REQUIRED, requirements, write_mlflow_files

ROOT = Path(__file__).resolve().parents[2]
# What `pip install .` reads of a checkout.
IN_SOURCE = ("sleepfm", "shards", "launch", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
REPOSITORY = {"url": "https://host/sleepfm.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
# With it, pip resolves by what an index says of its files, and does not download them; 23.2 would fetch gigabytes.
PIP = "pip>=23.3"


def written(folder: Path) -> list[str]:
    write_mlflow_files(folder, {"model": {"kind": "downstream"}})
    return (folder / "requirements.txt").read_text().splitlines()


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """What is run in ``folder``, of which Python finds nothing of the checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON"))}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=folder, env=kept | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)


def test_requirements_are_those_of_the_package_at_versions_that_an_index_has() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {line.split(">")[0] for line in setup["options"]["install_requires"].split()} == set(REQUIRED)
    named = dict(line.split("==") for line in requirements() if "==" in line and not line.startswith("sleepfm"))
    assert set(named) == set(REQUIRED)
    for name, version in named.items():
        assert importlib.metadata.version(name).split("+")[0] == version and "+" not in version


@pytest.mark.parametrize(
    ("origin", "named"),
    [
        (None, f"sleepfm=={sleepfm.__version__}"),
        (REPOSITORY, "sleepfm @ git+https://host/sleepfm.git@c0ffee"),
        (REPOSITORY | {"url": "file:///home/me/sleepfm"}, ""),
        ({"url": "file:///home/me/sleepfm", "dir_info": {}}, ""),
        ({"url": "file:///home/me/sleepfm", "dir_info": {"editable": True}}, ""),
        ({"url": "file:///home/me/sleepfm-0.1.0-py3-none-any.whl", "archive_info": {}}, ""),
    ],
    ids=("index", "repository", "repository in a folder", "folder", "editable", "wheel"),
)
def test_this_project_is_named_where_an_installer_can_get_it(
    origin: dict[str, Any] | None, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "sleepfm-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepfm\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text("pip\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(info.parent)
    lines = written(tmp_path)
    assert [line for line in lines if line.startswith("sleepfm")] == ([named] if named else [])
    # Else whoever opens the file reads what to do, and nothing of this machine.
    assert lines[0].startswith(f"# Install sleepfm {sleepfm.__version__} beside these") == (not named)
    assert "/home/me" not in "".join(file.read_text() for file in tmp_path.glob("*.*") if file.is_file())


def test_a_checkout_is_not_taken_for_what_an_index_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that setuptools leaves beside the source is found first by a process that is started there."""
    info = tmp_path / "checkout" / "sleepfm.egg-info"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sleepfm\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(info.parent)
    assert not [line for line in written(tmp_path) if line.startswith("sleepfm")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_installer_finds_all_that_is_written(tmp_path: Path) -> None:
    """In an environment with nothing in it, since in this one all of it is there already."""
    written(tmp_path)
    venv.create(tmp_path / "environment", with_pip=True)
    pip = (tmp_path / "environment" / "bin" / "python", "-m", "pip", "install", "--quiet")
    if run(tmp_path, *pip, PIP).returncode:
        pytest.skip("no package index can be reached")
    done = run(tmp_path, *pip, "--dry-run", "--report", "report.json", "--requirement", "requirements.txt")
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = {item["metadata"]["name"].lower() for item in json.loads((tmp_path / "report.json").read_text())["install"]}
    assert {name.replace("_", "-") for name in REQUIRED} <= {name.replace("_", "-") for name in chosen}


PREDICT = """
import sys, mlflow
from mlflow.models import Model
folder = sys.argv[1]
model = mlflow.pyfunc.load_model(folder)
(row,) = model.predict(Model.load(folder).load_input_example(folder)).to_dict("records")
print(row["record"], len(row["stages"]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_environment_of_the_requirements_lacks_this_project_alone(
    downstream_packages: dict[str, Path], tmp_path: Path
) -> None:
    """One that borrows the packages of this one: without this project MLflow says what is missing, with it the model runs."""
    assert main(["export", str(downstream_packages["stage"]), "--to", str(tmp_path / "model"), "--no-onnx"]) == 0
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python, own = environment / "bin" / "python", Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    # Paths in a .pth are searched, but the .pth files in them, such as that of an editable install, are not read.
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(tmp_path, python, "-c", PREDICT, "model")
    assert done.returncode and "No module named 'sleepfm'" in done.stderr, done.stderr[-3000:]
    # From a copy, so that nothing is left behind in the checkout.
    source = tmp_path / "source"
    source.mkdir()
    for name in IN_SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python, "install")
    done = run(tmp_path, *pip, "--no-deps", "--no-index", "--no-build-isolation", source)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run(tmp_path, python, "-c", PREDICT, "model")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["example", "1"]
