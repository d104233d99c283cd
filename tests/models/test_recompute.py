"""Forgotten activations change no number and take less memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sleepfm.config import read_yaml
from sleepfm.models.build import build_model
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.recompute import recompute_activations
from sleepfm.training.ranks.precision import RoundedProducts

CONFIGS = Path(__file__).parents[2] / "configs" / "models"
Result = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def model(name: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    built = build_model({**read_yaml(CONFIGS / f"{name}.yaml")["model"], **changes}).train()
    for key, parameter in built.named_parameters():
        if key.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    return built


def neuronet_loss(module: Any, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(size, *module.noise_shape, generator=generator)
    return module(torch.randn(size, 3000, generator=generator), noise).loss


def synthsleepnet_loss(module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(4, len(module.channels), 3000, generator=generator)
    present = torch.rand(signals.shape[:2], generator=generator) < 0.7
    return module(signals, present, torch.rand(4, *module.noise_shape, generator=generator)).loss


def context_loss(module: nn.Module) -> Tensor:
    return module(torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(1))).square().mean()


def run(module: nn.Module, loss_of: Callable[[Any], Tensor], bf16: bool) -> Result:
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), RoundedProducts():
        loss = loss_of(module)
        loss.backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    return loss.detach(), gradients, {name: value.clone() for name, value in module.named_buffers()}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "neuronet": (lambda: model("neuronet-tiny"), neuronet_loss),
    # Channels that share a backbone, so that the second pass needs their adapters, and dropout on the updates.
    "synthsleepnet": (
        lambda: model("synthsleepnet-tiny", channels=("EEG_C3", "EEG_C4", "EOG_L", "ECG"), modality_dropout=0.2),
        synthsleepnet_loss,
    ),
    "mamba": (lambda: build_context(ContextConfig(headdim=16, layers=2, bidirectional=True), 32).train(), context_loss),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_statistics_are_the_same_to_the_bit(case: str, bf16: bool) -> None:
    build, loss_of = CASES[case]
    plain = build()
    forgetful = copy.deepcopy(plain)
    units = recompute_activations(forgetful)
    assert units == sum(vars(module).get("_forgets_activations", False) for module in forgetful.modules()) > 0
    loss, gradients, buffers = run(plain, loss_of, bf16)
    again, other_gradients, other_buffers = run(forgetful, loss_of, bf16)
    assert torch.equal(loss, again)
    assert gradients.keys() == other_gradients.keys() != set()
    assert all(torch.equal(value, other_gradients[name]) for name, value in gradients.items())
    assert all(torch.equal(value, other_buffers[name]) for name, value in buffers.items())


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if not isinstance(value, Tensor) or not value.untyped_storage().nbytes():
                continue
            storage = value.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                weakref.finalize(storage, self._free, key, size)
                self.now += size
        self.peak = max(self.peak, self.now)
        return result


def test_a_training_step_takes_much_less_memory() -> None:
    peaks = []
    for forget in (False, True):
        module = model("neuronet-tiny")
        if forget:
            recompute_activations(module)
        with PeakBytes() as memory:
            neuronet_loss(module, 32).backward()
        peaks.append(memory.peak)
    print(f"peak of tensors made in a step: {peaks[0] / 2**20:.1f} MiB, recomputing {peaks[1] / 2**20:.1f} MiB")
    assert peaks[1] < 0.6 * peaks[0]


def test_without_gradients_nothing_changes() -> None:
    module = model("neuronet-tiny").eval()
    signals = {module.channels[0]: torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        before = module.embed(signals)
        recompute_activations(module)
        assert torch.equal(module.embed(signals), before)
    assert set(module.state_dict()) == set(model("neuronet-tiny").state_dict())
