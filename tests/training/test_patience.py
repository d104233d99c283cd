"""A run whose validations get no better ends early, at the same step however often it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import alone, launch, trace

from sleepfm.registry.package import read_config

# Validated after every second step; the best is after the fourth.
ERRORS = "toy.errors=[0.5,0.4,0.45,0.4,0.1,0.1,0.1,0.1,0.1,0.1]"
PATIENT = ("train.steps=20", "train.validate_every=2", "train.patience=2", ERRORS)


def result(folder: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / run / "result.json").read_text())
    return found


@pytest.mark.slow
def test_it_ends_where_validations_are_no_better_and_not_before(tmp_path: Path) -> None:
    done = alone(tmp_path, *PATIENT)
    assert done.returncode == 0, done.stderr
    assert "ends at step 8, 2 validations after the best" in done.stderr
    found = result(tmp_path, "run")
    assert (found["steps"], found["best_step"], found["last"]["step"]) == (8, 4, 8)
    assert [row["step"] for row in trace(tmp_path)] == list(range(1, 9))
    assert [read_config(tmp_path / "run" / name)["training"]["step"] for name in ("package", "last")] == [4, 8]


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_step_on_any_number_of_processes(tmp_path: Path) -> None:
    assert alone(tmp_path, *PATIENT).returncode == 0
    # Item 50 is of the seventh step: after the checkpoint of step 4. What goes on begins with the first of the errors.
    killed = ("train.output=killed", "toy.kill_at=[50]", "toy.kill_flag=killed.flag", *PATIENT[:3], "toy.errors=[0.5,0.4,0.45]")
    assert launch(tmp_path, 2, *killed).returncode != 0
    done = launch(tmp_path, 2, *killed)
    assert done.returncode == 0, done.stderr
    found = result(tmp_path, "killed")
    assert (found["steps"], found["best_step"], found["last"]["step"]) == (8, 4, 8)
    # Killed after its last step, before its result: it trains no more, and says the same.
    (tmp_path / "run" / "result.json").unlink()
    done = alone(tmp_path, *PATIENT)
    assert done.returncode == 0, done.stderr
    assert trace(tmp_path)[-1]["step"] == 8 and result(tmp_path, "run")["steps"] == 8
    again = alone(tmp_path, *PATIENT)
    assert again.returncode == 0 and "already trained (8 steps)" in again.stdout


@pytest.mark.slow
def test_with_another_rate_it_goes_on_from_its_end(tmp_path: Path) -> None:
    assert alone(tmp_path, *PATIENT).returncode == 0
    # What goes on begins with the first of the errors: 0.5 and 0.4, neither below the best of 0.4.
    done = alone(tmp_path, *PATIENT, "train.lr=0.001")
    assert done.returncode == 0, done.stderr
    assert "continues from step 8 with train.lr (0.01 -> 0.001)" in done.stdout
    found = result(tmp_path, "run")
    assert (found["steps"], found["best_step"]) == (12, 4)
