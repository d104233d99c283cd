"""Imports between packages run one way. The layers stand in ``pyproject.toml``; ``docs/architecture.md`` shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([LINTER, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_run_from_the_outside_in() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_against_the_layers_is_found(tmp_path: Path) -> None:
    for name in ("sleepfm", "shards", "launch"):
        for source in (ROOT / name).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    metrics = tmp_path / "sleepfm" / "evaluation" / "metrics.py"
    metrics.write_text(metrics.read_text() + "\nfrom sleepfm.inference import scorer\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "sleepfm.evaluation.metrics -> sleepfm.inference.scorer" in done.stdout


def test_every_package_has_its_layer() -> None:
    placed = {name for layer in LAYERS for name in layer.split(" | ")}
    there = {
        f"sleepfm.{path.stem}" for path in (ROOT / "sleepfm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    # The package itself hands out what the outermost layers use.
    assert there - placed == {"sleepfm.__init__"} and placed - there == {"shards", "launch"}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_documentation_shows_the_layers(layer: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert shown is not None and layer.replace("sleepfm.", "") in shown[1]
