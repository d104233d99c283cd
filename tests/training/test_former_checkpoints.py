"""Checkpoints that were written before the optimiser was the fused one go on as they would have gone on then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import launch, trace
from torch import nn

from sleepfm.training.ranks.distributed import World
from sleepfm.training.update import Update

# The toy's on two processes after four of twelve steps, without ZeRO and with ZeRO 1, and the losses of those runs.
STORED = Path(__file__).parent / "stored" / "checkpoints-before-fused"


@pytest.mark.slow
@pytest.mark.parametrize(("written", "zero"), [("zero1", 1), ("zero0", 0), ("zero1", 0), ("zero0", 2)])
def test_a_checkpoint_of_before_goes_on(tmp_path: Path, written: str, zero: int) -> None:
    """Also at another stage, through the universal layout. Item 50 is of the seventh step."""
    options = (f"deepspeed.zero={zero}", "toy.kill_at=[50]", f"toy.kill_flag={tmp_path}/flag", "toy.seconds=0.2")
    assert launch(tmp_path, 2, *options, node=True).returncode != 0
    own = tmp_path / "run" / "checkpoints" / "step-00000004"
    shutil.rmtree(own)
    shutil.copytree(STORED / written / own.name, own)
    # Another store: what the first run told of itself may have been under way when it was killed.
    done = launch(tmp_path, 2, *options, f"tracking.uri=sqlite:///{tmp_path}/other.db", node=True)
    assert done.returncode == 0, done.stderr
    rows = trace(tmp_path)
    then = json.loads((STORED / "losses.json").read_text())[written]
    assert [row["step"] for row in rows] == [row["step"] for row in then]
    for row, before in zip(rows, then, strict=True):
        assert row["loss"] == pytest.approx(before["loss"], abs=1e-5)
        # Batch statistics over two items amplify rounding.
        assert row["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-3)


def test_a_count_of_updates_on_the_host_is_brought_to_its_parameter() -> None:
    """Where the parameter is on another device, the fused optimiser would refuse it."""
    there = nn.Parameter(torch.zeros(2, device="meta"))
    state = {there: {"step": torch.tensor(3.0, dtype=torch.float64)}}
    engine = SimpleNamespace(module=nn.Linear(1, 1), basic_optimizer=SimpleNamespace(state=state), optimizer=None)
    Update(engine, 0, 0.0, World(0, 1, 0, 1))
    assert state[there]["step"].device.type == "meta" and state[there]["step"].dtype == torch.float32
