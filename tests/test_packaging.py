"""What installing the package promises."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("package", ["sleepfm", "shards", "launch"])
def test_packages_import(package: str) -> None:
    assert importlib.import_module(package).__doc__


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As from the folder in which the repository was cloned."""
    (tmp_path / "sleepfm").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = "import sleepfm; print(sleepfm.score.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "score\n"), done.stderr


def test_every_requirement_is_pinned_and_explained() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    lines += [
        line for extra in ("shards", "train", "s3", "onnx", "docs") for line in setup["options.extras_require"][extra].split()
    ]
    required = [re.split(r"[\[<>=]", line)[0] for line in lines]
    known = {name.lower() for name in pins()}
    assert [name for name in required if name.lower() not in known] == []
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    assert [name for name in required if name not in explained] == []


def test_pins_bring_no_cuda_packages() -> None:
    assert [name for name in pins() if name.startswith(("nvidia", "triton", "torchvision"))] == []


def test_reading_a_recording_does_not_import_torch_ray_or_mlflow() -> None:
    program = (
        "import sys, sleepfm; sleepfm.read_recording;print([m for m in ('torch', 'ray', 'mlflow', 'mne') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ci_runs_lint_types_and_tests_and_nothing_more() -> None:
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make check", "make test"]


def test_a_commit_is_checked_by_the_commands_of_make_check() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ncheck: $(STAMP)\n", 1)[1].split("\n\n", 1)[0]
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == wanted
    assert all(hook["language"] == "system" and hook["always_run"] and not hook["pass_filenames"] for hook in hooks)
