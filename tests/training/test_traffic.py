"""What a step is said to move is what its operations read and write, although its products are not computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_nights import EVERY_CHANNEL, make_dataset, make_night
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sleepfm.config import load_config, read_yaml
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.training.job import Context
from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.activations import count_activations, in_type
from sleepfm.training.tracking.flops import item_flops
from sleepfm.training.tracking.traffic import Traffic, count_traffic
from sleepfm.training.tracking.unfilled import UnfilledProducts

WORLD = World(0, 1, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    make_dataset(folder / "set", [make_night(f"night{n}", 12, EVERY_CHANNEL, seed=n) for n in range(16)], per_shard=4)
    for modality in ("eeg", "eog", "emg", "ecg"):
        module = build_model(read_yaml(config_root() / f"pretrain/{modality}-tiny.yaml")["model"])
        write_package(folder / modality, module, {"model": model_config(module)}, "card")
    return folder


def stage_of(name: str, folder: Path) -> Stage:
    settings = [f"data.path={folder / 'set'}", "monitor=none", "registry.metric=val/loss", "registry.mode=min"]
    if name == "multimodal":
        settings += [f"encoders.{modality.upper()}={folder / modality}" for modality in ("eeg", "eog", "emg", "ecg")]
    config = load_config(PretrainConfig, config_root() / "pretrain" / f"{name}-tiny.yaml", settings)
    return build_stage(config, Context(WORLD, "", "never", config))


class Slow(TorchDispatchMode):
    """Every operation is computed, and every tensor that it has or gives lies in memory whole."""

    bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        free = ("detach", "empty", "view", "lift_fresh", "new_empty")
        if not func.is_view and not any(func._schema.name.startswith(f"aten::{word}") for word in (*free, "_unsafe_view")):
            for tensor in (*tensors(args), *tensors(tuple((kwargs or {}).values())), *tensors(out)):
                self.bytes += min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return out


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors(inner)


@pytest.mark.parametrize("name", ["eeg", "multimodal"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_count_is_that_of_a_step_which_is_computed(name: str, dtype: Any, folder: Path) -> None:
    stage = stage_of(name, folder)
    stage.module.train()
    counted = count_traffic(stage, WORLD, dtype).of(4)
    with Slow() as slow, FlopCounterMode(display=False) as flops:
        with in_type(WORLD.device, dtype):
            loss = stage.loss(stage.module, stage.stream.batch(0, 4), 0).loss
        loss.backward()
    assert counted.flops == flops.get_total_flops()
    # Layouts of what products give may differ, and a copy follows from it.
    assert counted.product_bytes + counted.other_bytes == pytest.approx(slow.bytes, rel=0.02)
    assert item_flops(stage, WORLD) == pytest.approx(count_traffic(stage, WORLD, dtype).per_item.flops, rel=0.01)


def test_counting_leaves_no_trace(folder: Path) -> None:
    stage = stage_of("eeg", folder)
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    random, training = torch.get_rng_state(), stage.module.training
    count_traffic(stage, WORLD, "bf16"), count_activations(stage, WORLD, "bf16")
    assert all(torch.equal(value, before[name]) for name, value in stage.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and stage.module.training == training
    assert all(parameter.grad is None for parameter in stage.module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_give_zeros_of_the_same_shape_and_type(dtype: torch.dtype) -> None:
    x = torch.randn(2, 8, 32, 16).to(dtype, memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(8, 4, 3, bias=False).to(dtype)
    query = torch.randn(2, 4, 16, 8, dtype=dtype, requires_grad=True)

    def calls() -> list[Tensor]:
        attended = functional.scaled_dot_product_attention(query, query, query)
        outputs = [convolution(x), attended, x[0, 0] @ x[0, 1].T, torch.baddbmm(x[0], x[0], x[0, :, :16])]
        return [*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), [x, query, convolution.weight])]

    real = calls()
    with UnfilledProducts():  # type: ignore[no-untyped-call]
        unfilled = calls()
    assert [(t.shape, t.dtype) for t in unfilled] == [(t.shape, t.dtype) for t in real]
    assert not any(t.any() for t in unfilled[:4]) and all(t.any() for t in real[:4])


def test_traffic_adds_up() -> None:
    assert Traffic(1, 2, 3) + Traffic(1, 1, 1) * 2 == Traffic(3, 4, 5)
