"""What may be asked of the engine beside the plain step, under the real launcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import launch, trace
from safetensors.torch import load_file
from test_launch import plain_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain run."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, "run")
    return folder


def run(folder: Path, name: str, *arguments: str, processes: int = 2) -> None:
    done = launch(folder, processes, f"train.output={name}", *arguments, node=True)
    assert done.returncode == 0, done.stderr


def test_recomputing_changes_no_number(folder: Path) -> None:
    run(folder, "forgetful", "train.recompute=true")
    assert trace(folder, "forgetful") == trace(folder, "run")


@pytest.mark.parametrize("zero", [1, 2])
def test_an_average_of_weights_is_validated_selected_exported_and_resumed(folder: Path, zero: int) -> None:
    ema = ["train.ema=0.8", f"deepspeed.zero={zero}"]
    name = f"ema{zero}"
    run(folder, name, *ema)
    rows, plain = trace(folder, name), trace(folder, "run")
    # Averaging changes no step; ZeRO 2 itself adds up in another order.
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in plain], abs=1e-5 if zero == 2 else 0)
    exported = load_file(folder / name / "package" / "model.safetensors")
    best = json.loads((folder / name / "result.json").read_text())["best_step"]
    for key, value in averaged(best, 0.8).items():
        torch.testing.assert_close(exported[key], value, atol=1e-4, rtol=0)

    killed = [*ema, "toy.kill_at=[50]", f"toy.kill_flag={name}.flag"]
    assert launch(folder, 2, f"train.output={name}-killed", *killed, node=True).returncode != 0
    run(folder, f"{name}-killed", *killed)
    assert trace(folder, f"{name}-killed") == rows
    again = load_file(folder / f"{name}-killed" / "package" / "model.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in exported.items())


def averaged(steps: int, decay: float) -> dict[str, torch.Tensor]:
    """The average after ``steps`` of the loop without DeepSpeed, of the parameters."""
    average: dict[str, torch.Tensor] = {}
    for step, (module, _, _) in enumerate(plain_steps(2)):
        state = {key: value.detach().clone() for key, value in module.named_parameters()}
        rate = min(decay, (1 + step) / (10 + step))
        # Step 0 is before the first.
        average = {key: rate * average[key] + (1 - rate) * value for key, value in state.items()} if average else state
        if step == steps:
            return average
    raise AssertionError("fewer steps")


@pytest.mark.timeout(1800)
def test_a_compiled_model_trains_to_the_same_losses(folder: Path) -> None:
    # Compiled dropout draws other numbers.
    run(folder, "steady", "toy.dropout=0")
    run(folder, "compiled", "toy.dropout=0", "train.compile=true")
    for row, other in zip(trace(folder, "compiled"), trace(folder, "steady"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
