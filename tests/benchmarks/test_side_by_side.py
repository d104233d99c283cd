"""The registered models beside outside scorers: both sides get the same figures from the same functions."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from sleepfm.signals.scorings.scoring import Event

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import side_by_side


def test_figures_of_both_sides():
    rng = np.random.default_rng(0)
    truth = [rng.integers(0, 5, size) for size in (100, 120)]
    called = [np.where(rng.random(len(night) + 3) < 0.3, 0, np.append(night, [0, 0, 0])) for night in truth]
    found = side_by_side.stage_figures(truth, called)
    both = np.concatenate(truth), np.concatenate([c[: len(t)] for t, c in zip(truth, called, strict=True)])
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(*both)) and "2 people only" in found["kappa"]["note"]
    stages = np.full(240, 2)
    events = [Event(100.0 * n, 20.0, kind) for n, kind in enumerate(["obstructive_apnea", "hypopnea", "hypopnea"], 1)]
    nights = [(stages, events), (stages, events[:1])]
    same = side_by_side.event_figures(nights, [(stages, [Event(e.onset, e.duration, "apnea") for e in events[:1]]), nights[1]])
    assert same["apnea"]["f1_iou_0.5"]["value"] == 1.0 and same["hypopnea"]["recall_iou_0.2"]["value"] == 0.0
    assert same["ahi"]["reference"] == (1.5, 0.5) and same["ahi"]["estimate"] == (0.5, 0.5)
    assert same["ahi"]["mae"]["value"] == 0.5 and not math.isnan(same["ahi"]["icc"]["value"])


def test_it_runs_on_nights_with_faults(downstream_packages, tmp_path, monkeypatch, capsys):
    packages = [str(path) for path in downstream_packages.values()]
    options = ["--nights", "2", "--hours", "0.25", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "f.json")]
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--models", *packages, *options])
    side_by_side.main()
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["ours"]["events"].startswith("not assessed") and 0 <= found["ours"]["stages"]["accuracy"]["value"] <= 1
    assert set(found["ours"]["models"]) == {"stage", "apnea", "hypopnea"} and "yasa" not in found
