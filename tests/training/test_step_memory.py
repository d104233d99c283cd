"""Counted activations are what a step takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_nights import EVERY_CHANNEL, make_dataset, make_night
from toy import ToyRunConfig, ToyStage

from sleepfm.config import validate
from sleepfm.training.job import Context
from sleepfm.training.ranks.distributed import World
from sleepfm.training.tracking.activations import count_activations, measure_activations
from sleepfm.training.tracking.devices import DEVICES, NAMED, known_device
from sleepfm.training.tracking.step_time import Work, sent_bytes, step_seconds
from sleepfm.training.tracking.traffic import Traffic

WORLD = World(0, 1, 0, 1)
JOB = Path(__file__).with_name("step_memory_job.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nights = [make_night(f"night{n}", 12, EVERY_CHANNEL, seed=n) for n in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4).path


def toy_config(**deepspeed: object) -> ToyRunConfig:
    values = {
        "train": {"output": "run", "steps": 1, "lr": 0.1, "global_batch": 8},
        "registry": {"name": "toy", "metric": "val/error"},
        "deepspeed": deepspeed,
    }
    return validate(ToyRunConfig, values, "toy")


# Beside what is kept, a step holds what one operation works on; with `recompute` the inside of one block as well.
@pytest.mark.parametrize(
    ("name", "items", "more", "highest"),
    [
        ("pretrain/eeg-tiny.yaml", 96, [], 1.2),
        pytest.param("pretrain/eeg-tiny.yaml", 96, ["train.recompute=true"], 1.5, marks=pytest.mark.slow),
        pytest.param("pretrain/eeg-base.yaml", 8, [], 1.2, marks=pytest.mark.slow),
    ],
    ids=["tiny", "tiny-recompute", "base"],
)
def test_counted_memory_is_what_a_step_takes(data: Path, name: str, items: int, more: list[str], highest: float) -> None:
    command = [sys.executable, str(JOB), name, str(data), str(items), *more]
    # Else the allocator keeps what was freed, and the second step takes less than it needs.
    returned = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | returned, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0.95 < found["measured"] / found["counted"] < highest, found


def test_counting_is_exact_for_layers_whose_needs_are_known_and_leaves_no_trace() -> None:
    config = toy_config()
    stage = ToyStage(config, Context(WORLD, "", "never", config))
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    counted = count_activations(stage, WORLD, "fp32")
    width, signal = config.toy.width, 8
    # Of an item: output of the frozen layer; of the inner layer, of the norm, of the activation, of the dropout and its mask;
    # the difference that is squared.
    least = 4 * (signal + 3 * width + signal)
    assert least <= counted.per_item <= 3 * least
    assert counted.bytes(100) == counted.fixed + 100 * counted.per_item
    assert all(torch.equal(value, before[name]) for name, value in stage.module.state_dict().items())
    assert count_activations(stage, WORLD, "bf16").per_item < counted.per_item * 1.01


@pytest.mark.gpu
@pytest.mark.parametrize("micro_batch", [8, 64])
def test_measured_on_a_device_is_near_what_was_counted_there(micro_batch: int) -> None:
    config = toy_config()
    stage = ToyStage(config, Context(WORLD, "", "never", config))
    device = World(0, 1, 0, 1)
    measured = measure_activations(stage, device, "fp32", micro_batch).bytes(micro_batch)
    assert measured >= count_activations(stage, device, "fp32").bytes(micro_batch)


def test_devices_are_known_by_the_names_that_torch_gives() -> None:
    names = {
        "NVIDIA H200": "H200",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA A100-SXM4-80GB": "A100",
    }
    assert {name: getattr(known_device(name), "name", None) for name in names} == names
    assert known_device("NVIDIA T4") is None
    assert [device.name for device in NAMED] == ["H200", "H100", "A100"]
    assert all(device.source for device in DEVICES)


def test_a_step_takes_the_arithmetic_of_products_and_the_bytes_of_all_else() -> None:
    device = NAMED[1]
    optimiser, bandwidth = 28e6 / (0.7 * 3.35e12), 0.7 * 3.35e12
    computing = step_seconds(Work(Traffic(1e15, 1e9), 1e6, 1), 1, device)
    assert computing["arithmetic"] == pytest.approx(1e15 / (0.5 * 989e12) + optimiser) == computing["step"]
    fetching = step_seconds(Work(Traffic(1e9, 1e12), 1e6, 1), 1, device)
    assert fetching["arithmetic"] == pytest.approx(1e12 / bandwidth + optimiser) == fetching["step"]
    eager = step_seconds(Work(Traffic(1e15, 0, 1e12), 1e6, 1, compiled=False), 1, device)
    assert eager["step"] == pytest.approx(1e12 / bandwidth + computing["step"])
    compiled = step_seconds(Work(Traffic(1e15, 0, 1e12), 1e6, 1), 1, device)
    assert compiled["step"] == pytest.approx(0.62e12 / bandwidth + computing["step"])
    launching = step_seconds(Work(Traffic(1e9), 1e6, 1, kernels=2000), 1, device)
    assert launching["arithmetic"] == pytest.approx(2000 * 5e-6 + optimiser) == launching["step"]
    several = step_seconds(Work(Traffic(1e9), 1e9, 1), 16, device)
    assert several["communication"] > sent_bytes(1, 1e9, 16) / device.nvlink
    assert several["step"] > several["arithmetic"]
