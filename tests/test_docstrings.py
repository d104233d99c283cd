"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
from made_edf import Made, write_edf

MODULES = [
    "sleepfm.evaluation.desaturations",
    "sleepfm.evaluation.events",
    "sleepfm.evaluation.sleep_statistics",
    "sleepfm.signals.cohorts.label_grammar",
    "sleepfm.signals.recording",
    "sleepfm.tasks",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = np.zeros(3000, np.int16)
    write_edf(tmp_path / "night.edf", [Made(f"EEG {where}", samples, 100) for where in ("C3-A2", "C4-A1")])
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_no_example_is_left_out() -> None:
    root = Path(__file__).resolve().parents[1]
    paths = [path for package in ("sleepfm", "shards") for path in (root / package).rglob("*.py") if ">>> " in path.read_text()]
    assert {".".join(path.relative_to(root).with_suffix("").parts) for path in paths} == set(MODULES)
