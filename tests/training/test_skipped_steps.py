"""A step that is not finite on one rank changes nothing on any, and is told as what it was."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CONFIG, environment, trace
from torch import nn

from sleepfm.training.state.weights import StatisticsGuard

JOB = Path(__file__).with_name("skip_job.py")
# Of a step of eight items in two micro-steps on two ranks: of the third step, both on rank 1 alone.
LOSS_AT, GRADIENT_AT = 19, 38


def run(folder: Path, *overrides: str, gradient_at: int = -1) -> list[list[dict[str, str]]]:
    """A job of two processes; what each rank held after each of its steps."""
    (folder / "toy.yaml").write_text(CONFIG)
    line = [sys.executable, "-m", "sleepfm.training.launcher", "2", str(JOB), "toy.yaml", "train.ema=0.8", *overrides]
    # Validations and saves average the statistics of the ranks.
    line += ["train.checkpoint_every=100", "train.validate_every=0"]
    variables = environment() | {"GRADIENT_AT": str(gradient_at)}
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(tmp_path: Path, zero: int) -> None:
    bad = {3: ["night18", "night19"], 5: [f"night{number}" for number in range(32, 40)]}
    ranks = run(tmp_path, f"deepspeed.zero={zero}", f"toy.nan_at=[{LOSS_AT}]", "train.steps=7", gradient_at=GRADIENT_AT)
    for rank in ranks:
        assert len(rank) == 7
        for step, (before, after) in enumerate(pairwise(rank), 2):
            changed = {name for name in after if after[name] != before[name]}
            assert changed == (set() if step in bad else set(after)), step
    assert [row["weights"] for row in ranks[0]] == [row["weights"] for row in ranks[1]]
    rows = {row["step"]: row for row in trace(tmp_path)}
    assert {step: row["recordings"] for step, row in rows.items() if row.get("skipped")} == bad
    assert [*rows] == list(range(1, 8))
    # The gradient alone was not finite.
    assert rows[5]["loss"] == rows[5]["loss"] and rows[3]["loss"] != rows[3]["loss"]


def test_statistics_go_back_only_where_the_flag_says_so() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    guard = StatisticsGuard(module)
    states: list[dict[str, Any]] = []
    for skip, mean in ((False, 1.0), (True, float("nan")), (False, 2.0)):
        guard.keep()
        for norm in (module[0], module[2]):
            norm.running_mean += mean
            norm.running_var *= 1 + mean
        guard.restore(torch.tensor(skip))
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[2]["0.running_mean"].tolist() == [3.0] * 3 and states[2]["2.running_var"].tolist() == [6.0] * 2
    # Without batch norms that learn there is nothing to keep.
    nothing = StatisticsGuard(nn.Linear(2, 2))
    nothing.keep()
    nothing.restore(torch.tensor(True))
