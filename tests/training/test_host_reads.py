"""A training step does not wait for the device, and what would wait is found. Every stage's step: ``test_cuda_types.py``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import HostReads
from torch import Tensor

from sleepfm.config import read_yaml
from sleepfm.models import guards, losses
from sleepfm.models.build import build_model
from sleepfm.paths import config_root

Run = Callable[..., Any]

# What waits, of numbers ``x`` [4, 4], a mask ``m`` [4] and whole numbers ``n`` [4]; and what HostReads calls it.
WAITS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], object], str]] = {
    "item": (lambda x, m, n: x[0, 0].item(), "_local_scalar_dense"),
    "a number": (lambda x, m, n: float(x.sum()), "_local_scalar_dense"),
    "a condition": (lambda x, m, n: 1 if m.all() else 0, "_local_scalar_dense"),
    "all close": (lambda x, m, n: torch.allclose(x, x), ""),
    "equal": (lambda x, m, n: torch.equal(x, x + 1), "equal"),
    "nonzero": (lambda x, m, n: m.nonzero(), "nonzero"),
    "rows at a mask": (lambda x, m, n: x[m], "index with a mask"),
    "rows set at a mask": (lambda x, m, n: x.index_put((m,), x[:1]), "index_put with a mask"),
    "the gradient of rows at a mask": (lambda x, m, n: x.requires_grad_()[m].sum().backward(), "index_put with a mask"),
    "numbers at a mask": (lambda x, m, n: x.masked_select(m), "masked_select"),
    "repetition by a tensor": (lambda x, m, n: x.repeat_interleave(n, dim=0), "repeat_interleave with a tensor"),
    "unique": (lambda x, m, n: n.unique(), "_unique2"),
    "counts": (lambda x, m, n: n.bincount(), "bincount"),
    "a list": (lambda x, m, n: n.tolist(), ""),
    "a copy to the host": (lambda x, m, n: n.cpu(), ""),
}
# The same, of what only a device has.
CROSSINGS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], object], str]] = {
    "rows at a list": (lambda x, m, n: x[[0, 2]], "index with an index of the host"),
    "a tensor to the device": (lambda x, m, n: torch.ones(4).to(x.device), "copy from cpu"),
    "a tensor into one of the device": (lambda x, m, n: x.copy_(torch.ones(4, 4)), "copy from cpu"),
}
GOES_ON: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "a mask as weights": lambda x, m, n: (x * m[:, None]).sum() / m.sum().clamp(min=1),
    "a number set at a mask": lambda x, m, n: x.masked_fill(m[:, None], 0),
    "a number assigned at a mask": lambda x, m, n: x.__setitem__(m, 0.0),
    "rows at places": lambda x, m, n: x.gather(0, n[:, None].expand(4, 4)),
    "rows at an index": lambda x, m, n: x[n.clamp(max=3)],
    "repetition by a number": lambda x, m, n: x.repeat_interleave(3, dim=0),
    "repetition to a known size": lambda x, m, n: x.repeat_interleave(n, dim=0, output_size=6),
    "sort": lambda x, m, n: x.argsort(dim=1),
    "a choice": lambda x, m, n: torch.where(m.all(), x, 0.0),
    "a copy that nobody waits for": lambda x, m, n: torch.ones(4).to(x.device, non_blocking=True),
}


def numbers(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x, mask, whole = torch.rand(4, 4), torch.tensor([True, False, True, True]), torch.tensor([0, 1, 3, 2])
    return x.to(device), mask.to(device), whole.to(device)


def found_of(operation: Callable[..., object], device: torch.device) -> list[str]:
    given = numbers(device)
    with HostReads(device) as reads:
        operation(*given)
    return [str(read) for read in reads.found]


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_found_on_the_cpu(name: str) -> None:
    found = found_of(WAITS[name][0], torch.device("cpu"))
    assert any(WAITS[name][1] in read and "test_host_reads.py:" in read for read in found), found


@pytest.mark.parametrize("name", GOES_ON)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    assert found_of(GOES_ON[name], torch.device("cpu")) == []


@pytest.fixture(scope="module")
def there() -> Iterator[Run]:
    """Runs a function of this module in a process that has the simulated device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result()


def all_there() -> dict[str, list[str]]:
    from simulated_cuda import DEVICE

    every = {name: operation for name, (operation, _) in {**WAITS, **CROSSINGS}.items()} | GOES_ON
    return {name: found_of(operation, DEVICE) for name, operation in every.items()}


def test_what_waits_for_a_device_is_found_there_and_nothing_else(there: Run) -> None:
    found = there(all_there)
    for name, (_, what) in {**WAITS, **CROSSINGS}.items():
        assert any(what in read for read in found[name]), (name, found[name])
    assert {name: found[name] for name in GOES_ON if found[name]} == {}


@pytest.mark.parametrize("make", [lambda x: torch.tensor([1.0, 2.0], device=x.device), lambda x: x.new_tensor([1.0])])
def test_numbers_of_the_host_are_found(make: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(2, device="meta")
    with HostReads("meta") as reads:
        make(x)
    assert [read.operation for read in reads.found] == ["tensor of numbers of the host"]


def synthsleepnet_waits(device: torch.device, logged: bool) -> list[str]:
    """Waits of a forward and backward pass with absent channels and modalities left out."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    values = read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"]
    model = build_model(values | {"channels": ["EEG_C3", "EEG_C4", "ECG"], "modality_dropout": 0.3}).to(device).train()
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    given = [part.to(device) for part in (torch.randn(3, 3, 3000), present, torch.rand(3, *model.noise_shape))]
    with guards.only_if(logged), HostReads(device) as reads:
        model(*given).loss.backward()
    return [str(read) for read in reads.found]


def test_a_step_of_a_synthsleepnet_waits_for_nothing() -> None:
    assert synthsleepnet_waits(torch.device("cpu"), logged=False) == []


def test_a_logged_step_waits_for_eigenvalues_alone() -> None:
    (wait,) = synthsleepnet_waits(torch.device("cpu"), logged=True)
    assert wait.startswith("_linalg_eigh at sleepfm/models/guards.py:")


def test_a_wait_that_comes_into_a_model_is_found_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = losses.masked_reconstruction

    def planted(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return sound(prediction, target, mask) * (1.0 if mask.any() else 0.0)

    monkeypatch.setattr(losses, "masked_reconstruction", planted)
    found = synthsleepnet_waits(torch.device("cpu"), logged=False)
    line = planted.__code__.co_firstlineno + 1
    assert found == [f"_local_scalar_dense at {Path('tests/training/test_host_reads.py')}:{line}"] * 3


@pytest.mark.gpu
def test_cuda_itself_finds_no_wait() -> None:
    values = read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"]
    model = build_model(values).to("cuda").train()
    given = torch.randn(3, 4, 3000), torch.rand(3, 4) < 0.7, torch.rand(3, *model.noise_shape)
    given = [part.to("cuda") for part in given]
    with guards.only_if(False), torch.autocast("cuda", torch.bfloat16):
        model(*given).loss.backward()  # What libraries set up in the first step may wait.
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(*given).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
