"""What is counted of a step for the roofline: by hand where that can be done, and in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sleepfm.models.build import build_model
from sleepfm.models.frame_encoder import ResidualBlock
from sleepfm.models.recompute import compile_units

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL: dict[str, Any] = {
    "kind": "neuronet",
    "channels": ["EEG_C4"],
    "step_s": 4.0,
    # Two features in squeeze-and-excitation: a compiler does not compute a product with a side of one as a product.
    "frame_encoder": {
        "stem": 4,
        "channels": [4, 8],
        "strides": [2, 2],
        "kernels": [3],
        "pools": [3],
        "reduction": 2,
        "feature": 16,
    },
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
}
MULTIMODAL: dict[str, Any] = {
    "kind": "synthsleepnet",
    "channels": ["EEG_C4", "ECG"],
    "backbone": SMALL,
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
}


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_bytes_and_kernels_are_those_of_a_count_by_hand() -> None:
    from counted import Counting

    with FakeTensorMode():
        x, weight = torch.empty(10, 20), torch.empty(20, 5)
        with Counting() as counting:
            y = x.t().t() @ weight
            y.add_(y.new_empty(5).expand(10, 5))
    product, sum_ = counting.step.kernels
    assert (product.name, product.bytes, product.flops) == ("mm", 4 * (200 + 100 + 50), 2 * 10 * 20 * 5)
    # An expanded tensor lies in memory once.
    assert (sum_.name, sum_.bytes, sum_.product) == ("add_", 4 * (50 + 5 + 50), False)
    assert (counting.step.product_bytes, counting.step.other_bytes, counting.step.launches) == (1400, 420, 2)


def test_a_step_takes_the_longer_of_arithmetic_and_bytes_and_of_device_and_host() -> None:
    from counted import Kernel, Step
    from roofline import GAP, LAUNCH, Rates, seconds

    kernels = [Kernel("mm", 100.0, 4_000.0, True), Kernel("mm", 900.0, 1_000.0, True), Kernel("add", 500.0)]
    found = seconds(Step(kernels), Rates(flops=1_000.0, bandwidth=100.0))
    assert found == {"products": 4.0 + 9.0, "others": 5.0, "gaps": 3 * GAP, "host": 3 * LAUNCH, "step": 18.0 + 3 * GAP}
    assert seconds(Step([Kernel("add", 1.0)] * 10), Rates(1e15, 1e15))["step"] == 10 * LAUNCH


def counted_block(compiled: bool) -> tuple[Any, int, float]:
    """A residual block of the base size at 256 items: its step, how many of the kernels are forward, bytes of its output."""
    from counted import Counting, Step
    from scheduled import units_as_scheduled

    counting = Counting()
    with FakeTensorMode(), units_as_scheduled(counting) if compiled else nullcontext():
        module = nn.Sequential(ResidualBlock(64, 128, 3, 1, True, 16)).train()
        x = torch.empty(256 * 27, 64, 100, dtype=torch.bfloat16, requires_grad=True)
        if compiled:
            compile_units(module)
        for _ in range(2):
            counting.step = Step()
            module.zero_grad()
            x.grad = None
            with counting, torch.autocast("cpu", torch.bfloat16):
                y = module(x)
                forward = len(counting.step.kernels)
                y.backward(torch.empty_like(y))
    return counting.step, forward, float(y.numel() * y.element_size())


def test_norm_activation_squeeze_and_residual_are_few_passes() -> None:
    eager, _, size = counted_block(False)
    step, forward, _ = counted_block(True)
    # Passes over the output's bytes: eager, and compiled with statistics apart from what they are used for.
    passes = step.other_bytes / size
    assert eager.other_bytes / size > 40
    assert passes < 24
    # Two norms and the one of the shortcut are each read for their statistics, from which the squeeze comes too; the first is
    # applied with its activation; the last pass does the rest: second norm, gate, the shortcut's norm, sum, activation.
    large = [kernel.bytes / size for kernel in step.kernels[:forward] if not kernel.product and kernel.bytes > 0.2 * size]
    assert len(large) <= 5 and sum(large) == pytest.approx(1 + 2 + 1 + 1 + 3, rel=0.05)
    assert len([kernel for kernel in step.kernels[forward:] if not kernel.product and kernel.bytes > 0.2 * size]) == 5
    # The same products, whoever computes what is between them.
    assert step.flops == eager.flops and step.product_bytes == eager.product_bytes


def test_the_arithmetic_is_that_of_torch_for_a_real_step() -> None:
    from roofline import count_step

    with FakeTensorMode():
        step = count_step(build_model(SMALL), 4, compiled=False)
    model = build_model(SMALL).train()
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 3000), torch.rand(4, *model.noise_shape)).loss.backward()
    # But for a product of the contrastive loss, which adds in place.
    assert step.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.slow
def test_the_compiled_step_of_the_multimodal_model_asks_for_less() -> None:
    from roofline import count

    found = count(MULTIMODAL, 4)
    eager, compiled = found["eager"], found["compiled"]
    assert compiled["kernels"] < 0.7 * eager["kernels"]
    assert compiled["other_bytes"] < eager["other_bytes"]
    assert compiled["gflop_an_item"] == eager["gflop_an_item"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_script_writes_what_the_documents_quote(tmp_path: Path) -> None:
    out = tmp_path / "roofline.json"
    words = [sys.executable, str(BENCHMARKS / "roofline.py"), "--items", "2", "--json", str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    stored = json.loads((BENCHMARKS / "results" / "roofline-2026-11-29.json").read_text())
    assert found.keys() == stored.keys() and found["steps"].keys() == stored["steps"].keys()
    for model, ways in found["steps"].items():
        for way, row in ways.items():
            # The arithmetic but for the contrastive loss, whose share grows with the items.
            assert row["gflop_an_item"] == pytest.approx(stored["steps"][model][way]["gflop_an_item"], rel=0.02)


def test_the_documents_quote_the_stored_figures() -> None:
    from roofline import table

    stored = json.loads((BENCHMARKS / "results" / "roofline-2026-11-29.json").read_text())
    text = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "\n".join(table(stored["steps"])) in text
