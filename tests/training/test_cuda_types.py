"""Every stage on a device that takes and refuses what CUDA does, without a GPU; and on a GPU where there is one. A training step
does not wait for the device.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_kernels import LOWER, PROMOTED, REFUSED, NoCudaKernel, refusal
from device_steps import STAGES, take_step
from made_nights import EVERY_CHANNEL, make_dataset, make_night
from torch import Tensor
from torch.nn import functional as F

from sleepfm.data.dataset import Dataset
from sleepfm.models import guards, heads

CHANNEL_SETS = (EVERY_CHANNEL, ("EEG_C4", "ECG"))
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    # Every other night lacks channels, so that what is done for absent ones is typed too.
    nights = [make_night(f"night{n}", 12, CHANNEL_SETS[n % 2], seed=n) for n in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


@pytest.fixture(scope="module")
def there() -> Iterator[Run]:
    """Runs a function of this module in a process that has the simulated device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result()


def step_there(kind: str, dataset: Path, packages: Path, folder: Path) -> dict[str, float]:
    from simulated_cuda import DEVICE

    torch.set_num_threads(1)
    return take_step(kind, DEVICE, dataset, packages, folder)


# One of each kind of stage in every run of the tests, its other settings in the long ones.
FIRST = {"unimodal", "multimodal", "context", "probe", "fine-tune", "events on frames"}
EVERY = [pytest.param(kind, marks=() if kind in FIRST else pytest.mark.slow) for kind in STAGES]


@pytest.mark.parametrize("kind", EVERY)
def test_a_stage_runs_where_only_cudas_kernels_are(
    there: Run, dataset: Dataset, packages: Path, tmp_path: Path, kind: str
) -> None:
    figures = there(step_there, kind, dataset.path, packages, tmp_path)
    assert figures and all(math.isfinite(value) for value in figures.values()), figures


def toy_there() -> float:
    from simulated_cuda import DEVICE
    from test_step_memory import WORLD, Context, ToyStage, toy_config

    config = toy_config()
    stage = ToyStage(config, Context(WORLD, "", "never", config))
    return stage.loss(stage.module.to(DEVICE), stage.stream.batch(0, 8).to(DEVICE), 0).loss.item()


def test_the_toy_of_other_tests_runs_there_too(there: Run) -> None:
    assert math.isfinite(there(toy_there))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_runs_on_the_device(dataset: Dataset, packages: Path, tmp_path: Path, kind: str) -> None:
    figures = take_step(kind, torch.device("cuda"), dataset.path, packages, tmp_path)
    assert figures and all(math.isfinite(value) for value in figures.values()), figures


def test_the_list_of_operations_is_that_of_the_installed_torch() -> None:
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")}
    assert {name.partition(".")[0] for name in names} >= LOWER | PROMOTED | REFUSED


# Operations on ``x`` [4, 4] in fp32, and the type that CUDA's autocast gives their output.
TYPES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "product": (lambda x: x @ x, "torch.bfloat16"),
    "linear": (lambda x: F.linear(x, x), "torch.bfloat16"),
    "attention": (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), "torch.bfloat16"),
    "softmax": (lambda x: x.softmax(-1), "torch.float32"),
    "exponential": (lambda x: (x @ x).exp(), "torch.float32"),
    "sum": (lambda x: (x @ x).sum(), "torch.float32"),
    "layer norm": (lambda x: F.layer_norm(x @ x, (4,)), "torch.float32"),
    "half and number": (lambda x: (x @ x) + 1, "torch.bfloat16"),
    "half and whole": (lambda x: (x @ x) + x, "torch.float32"),
}


def type_there(name: str) -> str:
    from simulated_cuda import DEVICE

    with torch.autocast(DEVICE.type, torch.bfloat16):
        return str(TYPES[name][0](torch.randn(4, 4).to(DEVICE)).dtype)


@pytest.mark.parametrize("name", TYPES)
def test_operations_get_the_types_of_cudas_autocast(there: Run, name: str) -> None:
    assert there(type_there, name) == TYPES[name][1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", TYPES)
def test_these_are_the_types_on_the_device(name: str) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        assert str(TYPES[name][0](torch.randn(4, 4, device="cuda")).dtype) == TYPES[name][1]


# What CUDA refuses of a tensor ``x`` [4, 4] in fp32 on the device, under autocast.
FAULTS: dict[str, Callable[[Tensor], object]] = {
    "eigenvalues in bf16": lambda x: torch.linalg.eigvalsh(x @ x),
    "singular values in bf16": lambda x: torch.linalg.svdvals(x @ x),
    "eigenvectors in fp16": lambda x: torch.linalg.eigh(x.half()),
    "spectrum in bf16": lambda x: torch.fft.rfft((x @ x)[:, :3]),
    "binary cross entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), x.sigmoid()),
    "product of integers": lambda x: x.long() @ x.long(),
    "histogram": lambda x: torch.histogram(x, 3),
    "host beside device": lambda x: x + torch.ones(4),
    "index of the device into the host": lambda x: torch.ones(4)[x[0].long().clamp(0, 3)],
    "host into device": lambda x: torch.zeros(4, device=x.device).index_put_((torch.arange(2),), torch.ones(2)),
    "numpy of the device": lambda x: x.numpy(),
    "numpy of bf16": lambda x: (x @ x).cpu().numpy(),
    "pinning the device": lambda x: x.pin_memory(),
}


def fault_there(name: str) -> str:
    from simulated_cuda import DEVICE

    with torch.autocast(DEVICE.type, torch.bfloat16):
        try:
            FAULTS[name](torch.randn(4, 4).to(DEVICE))
        except (NoCudaKernel, RuntimeError, TypeError) as error:
            return str(error)
    return ""


@pytest.mark.parametrize("name", FAULTS)
def test_what_cuda_lacks_is_refused(there: Run, name: str) -> None:
    assert there(fault_there, name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAULTS)
def test_the_device_refuses_it_too(name: str) -> None:
    with torch.autocast("cuda", torch.bfloat16), pytest.raises((RuntimeError, TypeError)):
        FAULTS[name](torch.randn(4, 4, device="cuda"))


def refused(stage: str, kind: type[Exception], dataset: Path, packages: Path, folder: Path) -> str:
    """What an error of that kind says of a step of ``stage`` there; '' where there is none."""
    from simulated_cuda import DEVICE

    try:
        take_step(stage, DEVICE, dataset, packages, folder)
    except kind as error:
        return str(error)
    return ""


def planted_there(dataset: Path, packages: Path, folder: Path) -> str:
    """What becomes of a NeuroNet whose guard takes eigenvalues of what autocast made."""
    with pytest.MonkeyPatch.context() as planted:
        planted.setattr(guards, "effective_rank", lambda x: torch.linalg.eigvalsh(x.T @ x).sum())
        return refused("unimodal", NoCudaKernel, dataset, packages, folder)


def test_a_guard_in_bf16_would_be_found(there: Run, dataset: Dataset, packages: Path, tmp_path: Path) -> None:
    assert there(planted_there, dataset.path, packages, tmp_path) == (
        "_linalg_eigh gets torch.bfloat16, for which CUDA has no kernel"
    )


def waiting_there(dataset: Path, packages: Path, folder: Path) -> str:
    """What becomes of a fine-tune whose head asks how many epochs there are."""
    sound = heads.on_valid
    with pytest.MonkeyPatch.context() as planted:
        planted.setattr(heads, "on_valid", lambda module, x, valid: sound(module, x, valid if valid.sum().item() else None))
        return refused("fine-tune, frozen", AssertionError, dataset, packages, folder)


def test_a_step_that_waits_for_the_device_would_be_found(there: Run, dataset: Dataset, packages: Path, tmp_path: Path) -> None:
    assert "_local_scalar_dense at tests/training/test_cuda_types.py" in there(waiting_there, dataset.path, packages, tmp_path)


def collapse_there() -> tuple[float, float]:
    """The effective rank of one direction, and of many, as a product under autocast makes them."""
    from simulated_cuda import DEVICE

    torch.manual_seed(0)
    direction, many = torch.randn(1, 512).to(DEVICE), torch.randn(64, 512).to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        collapsed = torch.randn(64, 1).to(DEVICE) @ direction
        assert collapsed.dtype == torch.bfloat16
        return guards.effective_rank(collapsed).item(), guards.effective_rank(many).item()


def test_a_collapse_shows_in_bf16(there: Run) -> None:
    collapsed, spread = there(collapse_there)
    # Rounding of bf16 itself adds directions of a 256th.
    assert collapsed < 1.5 and spread > 50


def test_an_operation_without_a_kernel_is_told_by_its_type() -> None:
    half, whole, number = torch.ones(2, 2).bfloat16(), torch.ones(2, 2), torch.ones(2, 2).long()
    assert refusal("_linalg_svd", [half]) and refusal("_linalg_svd", [whole]) is None
    assert refusal("linalg_vector_norm", [half]) is None
    assert refusal("mm", [number, number]) and refusal("mm", [half, half]) is None
    assert refusal("histogram", [whole])
