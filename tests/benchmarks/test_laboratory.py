"""The laboratory's figures beside their bars, and its steps in miniature."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sleepfm.config import load_config
from sleepfm.demo.steps import DemoConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import laboratory

ROOT = Path(__file__).resolve().parents[2]


def reached(value: float) -> dict[str, float]:
    return {"value": value}


FIGURES: dict[str, Any] = {
    "kappa": 0.8,
    "breathing": {
        "apnea": {"metrics": {"f1_iou_0.2": reached(0.85), "onset_error_s": reached(3.0)}},
        "hypopnea": {"metrics": {"f1_iou_0.2": reached(0.7), "onset_error_s": reached(1.0)}},
        "ahi": {"icc": reached(0.95), "bias": reached(-1.5), "severity": {"accuracy": reached(0.9)}},
    },
    "few_labels": {"all_labels": 0.75, "pretrained": 0.75, "over_random_weights": 0.25},
    "kappa_by_modalities": {"EEG EOG": 0.8, "EEG": 0.75, "EOG": 0.5},
}


@pytest.mark.parametrize("name", ["laboratory", "laboratory-miniature"])
def test_its_configurations_are_the_demos(name: str) -> None:
    assert load_config(DemoConfig, f"demo/{name}.yaml").cohort.clean is False


def test_a_figure_at_its_bar_reaches_it() -> None:
    found = laboratory.bars(FIGURES)
    assert len(found) == 11 and all(bar.holds for bar in found)
    assert not any("NOT REACHED" in str(bar) for bar in found)


@pytest.mark.parametrize(
    ("place", "value", "number"),
    [
        (("kappa",), 0.79, 1),
        (("breathing", "apnea", "metrics", "f1_iou_0.2", "value"), 0.84, 1),
        (("breathing", "hypopnea", "metrics", "onset_error_s", "value"), 3.1, 1),
        (("breathing", "ahi", "bias", "value"), 1.6, 1),
        (("breathing", "ahi", "bias", "value"), -1.6, 1),
        # Undefined, and a whole AHI that was not assessed.
        (("breathing", "ahi", "icc", "value"), None, 1),
        (("breathing", "ahi"), {"not_assessed": "no stages"}, 3),
        (("few_labels", "over_random_weights"), 0.09, 1),
        (("few_labels", "pretrained"), 0.64, 1),
        (("kappa_by_modalities", "EEG"), 0.8, 1),
        (("kappa",), math.nan, 1),
    ],
)
def test_a_figure_past_its_bar_is_told(place: tuple[str, ...], value: Any, number: int) -> None:
    figures = copy.deepcopy(FIGURES)
    part = figures
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    missed = [bar for bar in laboratory.bars(figures) if not bar.holds]
    assert len(missed) == number and all("NOT REACHED" in str(bar) for bar in missed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_step_runs_in_miniature_and_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, str(ROOT / "benchmarks" / "laboratory.py"), "--miniature", "--json", str(tmp_path / "figures.json")]
    for done_before in (0, 29):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done before") == done_before
    written = json.loads((tmp_path / "figures.json").read_text())
    assert len(written["bars"]) == 11 and len(written["step_seconds"]) == 29
    assert written["figures"]["breathing"]["ahi"]["reference"]
    assert written["figures"]["breathing_without_respiratory_channels"]["apnea"]["located"]
    assert len(written["figures"]["kappa_by_modalities"]) == 5
    assert written["figures"]["arousals"]["kind"] == "arousal" and written["figures"]["arousals"]["located"]
    assert "kind_accuracy" in written["figures"]["breathing"]["apnea"]["metrics"]
