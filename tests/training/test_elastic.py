"""Runs that go on with another number of processes and at another ZeRO stage, under the real launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import environment, launch, trace
from safetensors.torch import load_file

from sleepfm.training.state import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# One step after each of these items the run is elsewhere: killed in the steps 4, 7 and 10, resumed from 2, 6 and 8, or from the
# one before where the last save was still being written.
KILLS = (28, 52, 76)
# Long enough for a save to be published before the kill.
SLOW = "toy.seconds=0.15"
EVERY = "train.checkpoint_every=2"
# Of what the toy has, dropout belongs to a rank's own share, and so do batch statistics unless told otherwise.
SHARED = ("toy.dropout=0", "train.batch_norm=sync", "train.ema=0.8")


def move(folder: Path, run: str, legs: list[tuple[int, int]], *arguments: str) -> list[dict[str, Any]]:
    """The trace of a run that is killed at the end of every leg but the last; a leg is (processes, ZeRO stage)."""
    kills = KILLS[: len(legs) - 1]
    moving = [EVERY, SLOW, *arguments, f"train.output={run}", f"toy.kill_at={list(kills)}", f"toy.kill_flag={run}.flag"]
    for number, (processes, zero) in enumerate(legs):
        done = launch(folder, processes, *moving, f"deepspeed.zero={zero}", node=True)
        assert (done.returncode == 0) == (number == len(legs) - 1), said(done)
        assert checkpoint.steps(folder / run / "checkpoints"), "nothing to go on from"
    return trace(folder, run)


def stay(folder: Path, run: str, *arguments: str) -> list[dict[str, Any]]:
    """The trace of a run of two processes at ZeRO stage 1 that nothing disturbs."""
    done = launch(folder, 2, EVERY, *arguments, f"train.output={run}", node=True)
    assert done.returncode == 0, said(done)
    return trace(folder, run)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.returncode}\n{done.stderr[-3000:]}"


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]], tolerance: float) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=tolerance), row["step"]
        assert row["lr"] == other["lr"]
        # Mean and mean square of the items say which ones the step took.
        assert [row["parts"][key] for key in ("items", "squares")] == [other["parts"][key] for key in ("items", "squares")]


def assert_same_result(folder: Path, run: str, other: str, tolerance: float) -> None:
    """The figures of the best validation, and the exported weights and running statistics."""
    figures, others = (json.loads((folder / name / "result.json").read_text())["metrics"] for name in (run, other))
    assert figures == pytest.approx(others, abs=tolerance)
    mine, theirs = (load_file(folder / name / "package" / "model.safetensors") for name in (run, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert (value.float() - theirs[name].float()).abs().max() <= tolerance, name


def test_any_stage_goes_on_at_any_other_in_one_process(tmp_path: Path) -> None:
    script = Path(__file__).with_name("stages_job.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, said(done)
    results = json.loads((tmp_path / "results.json").read_text())
    still = results.pop("still")
    assert len(results) == 9
    for name, found in results.items():
        # From the checkpoint of step 3 on; batch statistics, dropout and the average of weights are in it.
        assert list(found["losses"]) == ["4", "5", "6"], name
        for step, loss in found["losses"].items():
            assert loss == pytest.approx(still["losses"][step], abs=1e-6), name
        assert found["figures"] == pytest.approx(still["figures"], abs=1e-6), name
        assert found["weights"].keys() == still["weights"].keys()
        for key, values in found["weights"].items():
            assert values == pytest.approx(still["weights"][key], abs=1e-6), (name, key)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    stay(folder, "still", *SHARED)
    return folder


@pytest.mark.parametrize(
    "legs",
    [
        [(2, 1), (1, 1), (4, 1)],
        [(2, 1), (1, 2), (4, 2), (2, 1)],
        [(1, 2), (2, 1), (4, 1), (1, 0)],
        [(2, 0), (4, 2), (1, 0), (2, 2)],
    ],
    ids=str,
)
def test_losses_are_those_of_the_run_that_stayed(shared: Path, legs: list[tuple[int, int]]) -> None:
    run = "moved" + "".join(f"-{processes}z{zero}" for processes, zero in legs)
    assert_same(move(shared, run, legs, *SHARED), trace(shared, "still"), 1e-5)
    assert_same_result(shared, run, "still", 1e-5)


def test_a_rank_may_hold_no_part_of_a_group(tmp_path: Path) -> None:
    # Four numbers without decay, on four ranks that hold two each at least.
    few = [*SHARED, "toy.statistics=false", "toy.width=4", "toy.trains=hidden.inner"]
    assert_same(move(tmp_path, "moved", [(2, 1), (4, 1), (2, 2)], *few), stay(tmp_path, "still", *few), 1e-5)


def test_another_stage_keeps_what_belongs_to_ranks(tmp_path: Path) -> None:
    # At the same number of processes neither dropout nor batch statistics change.
    rows = move(tmp_path, "moved", [(2, 1), (2, 0), (2, 2)])
    assert_same(rows, stay(tmp_path, "still"), 1e-5)
    assert_same_result(tmp_path, "moved", "still", 1e-5)


def test_bf16_moves_too(tmp_path: Path) -> None:
    bf16 = [*SHARED, "deepspeed.dtype=bf16"]
    assert_same(move(tmp_path, "moved", [(2, 1), (1, 2), (4, 1)], *bf16), stay(tmp_path, "still", *bf16), 1e-3)
