"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_edf import Made, write_edf

from sleepfm.registry.hub import write_hub_files
from sleepfm.registry.package import read_config

MODULES = [
    "sleepfm.evaluation.desaturations",
    "sleepfm.evaluation.events",
    "sleepfm.evaluation.sleep_statistics",
    "sleepfm.inference.night_score",
    "sleepfm.inference.scorer",
    "sleepfm.models.embedding",
    "sleepfm.registry.hub",
    "sleepfm.registry.registry",
    "sleepfm.signals.cohorts.label_grammar",
    "sleepfm.signals.recording",
    "sleepfm.tasks",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recordings: list[Path],
    encoder_package: Path,
    downstream_packages: dict[str, Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"patient.edf": recordings[0], "encoder": encoder_package, "stage": downstream_packages["stage"]}
    for example, place in places.items():
        (tmp_path / example).symlink_to(place)
    shutil.copytree(encoder_package, tmp_path / "downloaded")
    write_hub_files(tmp_path / "downloaded", read_config(tmp_path / "downloaded"))
    samples = np.zeros(3000, np.int16)
    write_edf(tmp_path / "night.edf", [Made(f"EEG {where}", samples, 100) for where in ("C3-A2", "C4-A1")])
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_no_example_is_left_out() -> None:
    root = Path(__file__).resolve().parents[1]
    paths = [path for package in ("sleepfm", "shards") for path in (root / package).rglob("*.py") if ">>> " in path.read_text()]
    assert {".".join(path.relative_to(root).with_suffix("").parts) for path in paths} == set(MODULES)
