"""What installing the package promises."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("package", ["sleepfm", "shards", "launch"])
def test_packages_import(package: str) -> None:
    assert importlib.import_module(package).__doc__


def test_every_requirement_is_pinned_and_explained() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = [re.split(r"[\[<>=]", line)[0] for line in setup["options"]["install_requires"].split()]
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


def test_ci_runs_make_test_and_nothing_more() -> None:
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make test"]
