"""Training under the real launcher: right, resumable, and clear when it is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launching import alone, launch, trace
from toy import ToyConfig, ToyModule, ToyStream

from sleepfm.training.engine import _seed
from sleepfm.training.run_config import TrainConfig
from sleepfm.training.schedule import learning_rate, parameter_groups


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two processes, in which another run was killed and resumed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder, 2)
    assert done.returncode == 0, done.stderr
    return folder


def plain_steps(ranks: int, outer_rate: float = 1.0) -> Iterator[tuple[ToyModule, float, float]]:
    """Module, loss and gradient norm before the first and after every step of a loop without DeepSpeed; ranks take turns."""
    train = TrainConfig(output="", steps=12, global_batch=8, accumulation=2, lr=0.01, warmup=3)
    torch.manual_seed(train.seed)
    module, stream = ToyModule(ToyConfig()).train(), ToyStream()
    factor = {"outer.weight": outer_rate, "outer.bias": outer_rate}
    optimiser = torch.optim.AdamW(parameter_groups(module, 0.1, lambda name: factor.get(name, 1.0)), lr=train.lr)
    assert {p.shape for g in optimiser.param_groups if g["lr_factor"] != 1 for p in g["params"]} <= {(8, 16), (8,)}
    micro = 8 // 2 // ranks
    yield module, math.nan, math.nan
    for step in range(12):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(train, step, 12) * group["lr_factor"]
        optimiser.zero_grad()
        total = 0.0
        for part in range(2):
            for rank in range(ranks):
                batch = stream.batch(step * 8 + part * 4 + rank * micro, micro)
                torch.manual_seed(_seed(train.seed, step, part, rank))
                loss = (module(batch.signals) - batch.signals).pow(2).mean()
                (loss / (2 * ranks)).backward()
                total += loss.item() / (2 * ranks)
        trained = [p for p in module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimiser.step()
        yield module, total, norm.item()


def test_two_processes_with_zero_give_the_losses_of_a_plain_loop(undisturbed: Path) -> None:
    rows = trace(undisturbed)
    losses = [(loss, norm) for _, loss, norm in plain_steps(2)][1:]
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row, (loss, norm) in zip(rows, losses, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        # Batch statistics over two items amplify rounding.
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_a_run_killed_between_checkpoints_resumes_to_the_same_trace(undisturbed: Path) -> None:
    # Item 50 is of the seventh step: after the checkpoint of step 4, on the second rank.
    arguments = ["train.output=killed", "toy.kill_at=[50]", "toy.kill_flag=killed.flag"]
    first = launch(undisturbed, 2, *arguments)
    assert first.returncode != 0
    assert "lost contact with another rank" in first.stderr
    assert "Traceback" not in first.stderr
    assert trace(undisturbed, "killed")[-1]["step"] == 6
    second = launch(undisturbed, 2, *arguments)
    assert second.returncode == 0, second.stderr
    assert trace(undisturbed, "killed") == trace(undisturbed)
    kept = sorted(path.name for path in (undisturbed / "killed" / "checkpoints").glob("*step*"))
    assert kept == ["step-00000008", "step-00000012"]


def test_a_finished_run_is_not_repeated_and_another_configuration_is_refused(undisturbed: Path) -> None:
    before = (undisturbed / "run" / "trace.jsonl").stat().st_mtime_ns
    again = alone(undisturbed)
    assert (again.returncode, (undisturbed / "run" / "trace.jsonl").stat().st_mtime_ns) == (0, before)
    assert "already trained (12 steps) and registered as toy:" in again.stdout
    other = alone(undisturbed, "train.lr=0.02")
    assert other.returncode == 2
    assert "train.lr (0.01 -> 0.02)" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_wrong_key_is_one_line_from_one_rank_and_status_two(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, "train.stepz=3")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "error" in line]
    assert said == ["error: command line: unknown key 'train.stepz'; did you mean 'train.steps'?"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_parameters_with_a_rate_of_their_own_learn_at_it(undisturbed: Path, zero: int) -> None:
    run = f"own-rate{zero}"
    done = launch(undisturbed, 2, "toy.outer_rate=0.1", f"deepspeed.zero={zero}", f"train.output={run}")
    assert done.returncode == 0, done.stderr
    losses = [loss for _, loss, _ in plain_steps(2, 0.1)][1:]
    assert [row["loss"] for row in trace(undisturbed, run)] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] != pytest.approx(trace(undisturbed)[-1]["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_every_zero_stage_gives_the_same_losses(undisturbed: Path, zero: int) -> None:
    done = launch(undisturbed, 2, f"deepspeed.zero={zero}", f"train.output=zero{zero}")
    assert done.returncode == 0, done.stderr
    # Batch statistics over two items amplify the rounding of sums in another order.
    for row, base in zip(trace(undisturbed, f"zero{zero}"), trace(undisturbed), strict=True):
        assert row["loss"] == pytest.approx(base["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path: Path, zero: int) -> None:
    done = launch(tmp_path, 2, f"deepspeed.zero={zero}", "toy.nan_at=[35]")
    assert done.returncode == 0, done.stderr
    skipped = [row for row in trace(tmp_path) if row.get("skipped")]
    assert [(row["step"], row["recordings"]) for row in skipped] == [(5, ["night34", "night35"])]
    assert math.isfinite(trace(tmp_path)[-1]["loss"])


@pytest.mark.slow
def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, f"toy.nan_at={list(range(16, 96))}", "train.max_skipped=3")
    assert done.returncode == 1
    assert "3 steps in a row had a non-finite loss" in done.stderr
    assert "night32" in done.stderr


@pytest.mark.slow
def test_ranks_that_start_with_other_weights_are_named(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, "toy.differ=true")
    assert done.returncode == 1
    assert "rank 1 has another initial weights" in done.stderr
