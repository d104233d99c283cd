"""Counted arithmetic is right, and counting leaves no trace."""

from __future__ import annotations

import pytest
import torch
from toy import ToyRunConfig, ToyStage

from sleepfm.config import validate
from sleepfm.training.job import Context
from sleepfm.training.ranks.distributed import World
from sleepfm.training.tracking import flops
from sleepfm.training.tracking.flops import item_flops, peak_flops

WORLD = World(0, 1, 0, 1)


@pytest.fixture
def stage() -> ToyStage:
    values = {"train": {"output": "", "steps": 1, "lr": 0.1}, "registry": {"name": "toy", "metric": "val/error"}}
    config = validate(ToyRunConfig, values, "toy")
    return ToyStage(config, Context(WORLD, "", "never", config))


def test_an_item_of_linear_layers_costs_what_its_matrices_say(stage: ToyStage) -> None:
    forward = 2 * (8 * 8 + 8 * 16 + 16 * 8)
    # The frozen layer needs no gradients, the one behind it only those of its weights.
    backward = 2 * (8 * 16 + 2 * 16 * 8)
    assert item_flops(stage, WORLD) == forward + backward


def test_counting_changes_neither_weights_nor_statistics_nor_random_numbers(stage: ToyStage) -> None:
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    random, training = torch.get_rng_state(), stage.module.training
    item_flops(stage, WORLD)
    assert all(torch.equal(value, before[name]) for name, value in stage.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in stage.module.parameters())
    assert stage.module.training == training


def test_a_processor_without_data_sheet_is_measured() -> None:
    peak, source = peak_flops(torch.device("cpu"), "fp32")
    assert peak > 1e8
    assert source == "measured float32 matrix product"


def test_a_fast_device_is_measured_on_a_large_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts a product in 20 µs and does 100 TFLOP/s shows its peak on none below 4,096, and on 1,024 half of it."""
    sides = []

    def seconds(a: torch.Tensor) -> float:
        sides.append(a.shape[0])
        return 20e-6 + 2 * a.shape[0] ** 3 / 100e12

    monkeypatch.setattr(flops, "_seconds", seconds)
    peak, _ = peak_flops(torch.device("cpu"), "fp32")
    assert max(sides) == 8192 and 0.95 * 100e12 < peak <= 100e12
    sides.clear()
    # A slow one does not wait for large ones.
    monkeypatch.setattr(flops, "_seconds", lambda a: sides.append(a.shape[0]) or 2 * a.shape[0] ** 3 / 50e9)
    peak, _ = peak_flops(torch.device("cpu"), "fp32")
    assert max(sides) == 1024 and peak == pytest.approx(50e9)
