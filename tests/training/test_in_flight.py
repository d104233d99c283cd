"""Figures that arrive a step later: every row in its place, whatever happens to the run between."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import CONFIG, alone, environment, family, launch, trace

from sleepfm.training.figures import Sums
from sleepfm.training.in_flight import Taken
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS
from sleepfm.training.stage import StepLoss

JOB = Path(__file__).with_name("late_job.py")
WORLD = World(0, 1, 0, 1)


def late(folder: Path, processes: int, *overrides: str) -> subprocess.Popen[str]:
    (folder / "toy.yaml").write_text(CONFIG)
    line = [sys.executable, "-m", "sleepfm.training.launcher", str(processes), str(JOB), "toy.yaml", *overrides]
    return subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment())


def finish(job: subprocess.Popen[str], status: int = 0) -> str:
    said = job.communicate(timeout=600)[1]
    assert job.returncode == status, said
    return said


def test_what_is_learnt_of_a_step_is_what_was_sent() -> None:
    sums = Sums()
    for loss in (1.0, 2.0):
        sums.add(StepLoss(torch.tensor(loss), {"b": torch.tensor(loss, dtype=torch.bfloat16), "a": torch.tensor(3.0)}), 0.5)
    assert sums.names == ("a", "b", "loss") and sums.means(WORLD) == {"a": 3.0, "b": 1.5, "loss": 1.5}
    means = torch.cat([sums.values, torch.tensor([16.0, 0.25, 1.0], dtype=torch.float64)])
    finite = [torch.tensor(True), torch.tensor(False)]
    taken = Taken(7, 0.1, sums.names, ("leave", "save"), [["x"], ["y", "z"]], means, torch.tensor(True), finite)
    assert taken.at_once
    found = taken.outcome
    assert found.figures == {"a": 3.0, "b": 1.5, "loss": 1.5} and found.gradient_norm == 4.0
    assert found.votes == {"leave": 0.25, "save": 1.0} and found.skipped and found.not_finite == ["y", "z"]
    means[3] = torch.nan
    assert math.isnan(Taken(1, 0.1, sums.names, ("leave", "save"), [], means, torch.tensor(True), []).outcome.gradient_norm)
    assert Sums().means(WORLD) == {}


@pytest.mark.slow
def test_rows_that_come_later_are_those_that_come_at_once(tmp_path: Path) -> None:
    """With a skipped step, validations and saves between them."""
    settings = ("toy.nan_at=[35]", "train.ema=0.9", "train.steps=13")
    assert alone(tmp_path, *settings).returncode == 0
    finish(late(tmp_path, 1, *settings, "train.output=late"))
    assert json.dumps(trace(tmp_path, "late")) == json.dumps(trace(tmp_path))
    order = [tuple(entry) for entry in json.loads((tmp_path / "late-0.json").read_text())]
    assert [step for what, step in order if what == "learnt"] == [*range(1, 14)]
    for step in range(1, 14):
        # Before a save (every 4), a validation (every 5) and the end; else the next step has been queued as far as its update.
        at_once = step % 4 == 0 or step % 5 == 0 or step == 13
        assert order.index(("learnt", step)) == order.index(("queued", step)) + 1
        assert at_once or order[order.index(("learnt", step)) + 1] == ("queued", step + 1)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
def test_a_late_run_that_is_killed_or_asked_to_leave_goes_on_as_the_undisturbed_one(tmp_path: Path, zero: int) -> None:
    stage = f"deepspeed.zero={zero}"
    done = launch(tmp_path, 2, stage, "train.steps=24", node=True)
    assert done.returncode == 0, done.stderr
    # Item 50 is of the seventh step.
    arguments = (stage, "train.steps=24", "train.output=late", "toy.seconds=0.1", "toy.kill_at=[50]", "toy.kill_flag=flag")
    job = late(tmp_path, 2, *arguments)
    said = job.communicate(timeout=600)[1]
    assert job.returncode != 0 and "lost contact with another rank" in said
    # What is known of a step is on the disk before the next but one begins.
    assert trace(tmp_path, "late")[-1]["step"] in (5, 6)
    job = late(tmp_path, 2, *arguments)
    path = tmp_path / "late" / "trace.jsonl"
    deadline = time.monotonic() + 300
    while path.read_text().count("\n") < 14 or json.loads(path.read_text().splitlines()[-1])["step"] < 14:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    seen = trace(tmp_path, "late")[-1]["step"]
    next(process for process in family(job) if "--local_rank=1" in process.cmdline()).send_signal(signal.SIGUSR1)
    finish(job, PREEMPTED_STATUS)
    left = trace(tmp_path, "late")[-1]["step"]
    # One step is queued beyond what is known, the vote goes with the next, and is learnt of in the one after that.
    assert seen < left <= seen + 4
    assert (tmp_path / "late" / "checkpoints" / f"step-{left:08d}").is_dir()
    finish(late(tmp_path, 2, *arguments))
    assert trace(tmp_path, "late") == trace(tmp_path)


@pytest.mark.slow
def test_a_late_run_stops_after_too_many_bad_steps(tmp_path: Path) -> None:
    said = finish(late(tmp_path, 2, f"toy.nan_at={list(range(16, 96))}", "train.max_skipped=3", "train.checkpoint_every=1"), 1)
    assert "step 5: 3 steps in a row had a non-finite loss" in said and "night32" in said
    # None of a state whose last step is not known, and none while steps are skipped.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")) == ["step-00000001", "step-00000002"]
    assert [row["step"] for row in trace(tmp_path) if row.get("skipped")] == [3, 4]
