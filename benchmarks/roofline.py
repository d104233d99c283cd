"""How much of a GPU's peak a training step may reach, from counted arithmetic and bytes. A model, not a measurement.

    python benchmarks/roofline.py [--json FILE] [--items N]

The step (forward, backward, fused AdamW) of NeuroNet and SynthSleepNet at base size is counted on tensors without numbers, eager
and compiled (benchmarks/counted.py, benchmarks/scheduled.py): nothing of a step's size is allocated. A kernel takes the longer of
its arithmetic at the data sheet's bf16 peak and its bytes at the data sheet's bandwidth; between kernels the device rests for
:data:`GAP`, and the host needs :data:`LAUNCH` for each, which hides behind the device unless it is longer. So the share of the
peak (MFU) is an upper bound: real products reach some 80 % of the peak, real copies some 90 % of the bandwidth.

Types are those of the CPU's autocast, which unlike CUDA's leaves layer norms in bf16; exchanges between ranks, DeepSpeed's own
copies and input are not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from counted import Counting, Kernel, Step
from scheduled import units_as_scheduled
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sleepfm.config import read_yaml
from sleepfm.models import guards
from sleepfm.models.build import build_model
from sleepfm.models.recompute import compile_units
from sleepfm.paths import config_root

ITEMS = 256
LAUNCH = 5e-6  # assumed seconds of the host for a kernel: torch's dispatcher and CUDA's launch
GAP = 1e-6  # assumed seconds between two kernels on the device
BASE = {"NeuroNet": "neuronet-base", "SynthSleepNet": "synthsleepnet-base"}
# What is aimed at: share of the peak, bytes outside products, kernels of a step of 256 items.
TARGETS: dict[str, dict[str, float]] = {
    "NeuroNet": {"mfu": 0.40, "other_bytes": 15e9},
    "SynthSleepNet": {"mfu": 0.35, "launches": 1_200},
}


@dataclass(frozen=True)
class Rates:
    """FLOP/s in bf16 and bytes/s of a GPU."""

    flops: float
    bandwidth: float


GPUS = {
    "H100": Rates(989e12, 3.35e12),
    "H200": Rates(989e12, 4.8e12),
    # Large bf16 products and device copies, as once measured on one.
    "H200, at measured rates": Rates(790e12, 4.3e12),
}


def count_step(model: nn.Module, items: int, compiled: bool) -> Step:
    """The kernels of a training step of ``model`` (on fake tensors, within a ``FakeTensorMode``) on ``items`` items."""
    model.train()
    channels: Any = model.channels
    noise = torch.empty(items, *model.noise_shape)  # type: ignore[misc]
    inputs: tuple[torch.Tensor, ...] = (torch.empty(items, 3000), noise)
    if hasattr(model, "backbones"):
        inputs = (torch.empty(items, len(channels), 3000), torch.empty(items, len(channels), dtype=torch.bool), noise)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    if compiled:
        compile_units(model)
    counting = Counting()
    with units_as_scheduled(counting) if compiled else nullcontext():
        # The first step also makes what later ones find: graphs, folded encoders, moments.
        for _ in range(2):
            counting.step = Step()
            with counting:
                with torch.autocast("cpu", torch.bfloat16), guards.only_if(False):
                    loss = model(*inputs).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
    return counting.step


def seconds(step: Step, rates: Rates) -> dict[str, float]:
    """Seconds of a step: of products, of all else, of gaps, and of the host; ``step`` is the longer of device and host."""

    def device(kernels: list[Kernel]) -> float:
        return sum(max(kernel.flops / rates.flops, kernel.bytes / rates.bandwidth) for kernel in kernels)

    products = device([kernel for kernel in step.kernels if kernel.product])
    others = device([kernel for kernel in step.kernels if not kernel.product])
    gaps, host = GAP * step.launches, LAUNCH * step.launches
    return {"products": products, "others": others, "gaps": gaps, "host": host, "step": max(products + others + gaps, host)}


def describe(step: Step, items: int) -> dict[str, Any]:
    """What of a step is written down."""
    return {
        "kernels": step.launches,
        "gflop_an_item": step.flops / items / 1e9,
        "product_bytes": step.product_bytes,
        "other_bytes": step.other_bytes,
        "largest": step.largest(8),
        "gpus": {
            name: (times := seconds(step, rates)) | {"mfu": step.flops / rates.flops / times["step"]}
            for name, rates in GPUS.items()
        },
    }


def count(configuration: dict[str, Any], items: int) -> dict[str, dict[str, Any]]:
    """Both ways of a step of the model of ``configuration``, eager and compiled."""
    found = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        with FakeTensorMode():
            found[name] = describe(count_step(build_model(configuration), items, compiled), items)
    return found


def table(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """The rows of docs/scaling.md."""
    gpus = list(GPUS)
    rows = [
        f"| step | kernels | GB outside products | GB of products | MFU {', MFU '.join(gpus)} |".replace(", MFU", " | MFU"),
        "|---|---|---|---|" + "---|" * len(gpus),
    ]
    for model, ways in results.items():
        for way, row in ways.items():
            shares = " | ".join(f"{row['gpus'][gpu]['mfu']:.2f}" for gpu in gpus)
            traffic = f"{row['other_bytes'] / 1e9:.1f} | {row['product_bytes'] / 1e9:.1f}"
            rows.append(f"| {model}, {way} | {row['kernels']:,} | {traffic} | {shares} |")
    return rows


def missed(results: dict[str, dict[str, dict[str, Any]]], items: int) -> list[str]:
    """Which of :data:`TARGETS` the compiled steps do not reach."""
    lines = []
    for model, targets in TARGETS.items():
        row = results[model]["compiled"]
        for key, target in targets.items():
            if key == "mfu":
                lines += [
                    f"{model}: MFU at most {row['gpus'][gpu]['mfu']:.2f} on {gpu}, aimed at {target:.2f}"
                    for gpu in GPUS
                    if row["gpus"][gpu]["mfu"] < target
                ]
            elif (
                found := row["kernels" if key == "launches" else key] * (ITEMS / items if key == "other_bytes" else 1)
            ) > target:
                lines.append(f"{model}: {key} {found:.3g}, aimed at {target:.3g}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS, help="items of a step (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    began = time.perf_counter()
    results = {
        model: count(read_yaml(config_root() / "models" / f"{name}.yaml")["model"], arguments.items)
        for model, name in BASE.items()
    }
    print("\n".join(table(results)))
    lines = missed(results, arguments.items)
    print("\n".join(lines) if lines else "all targets reached")
    print(f"counted in {time.perf_counter() - began:.0f} s")
    if arguments.json:
        assumed = {"launch_s": LAUNCH, "gap_s": GAP, "gpus": {name: vars(rates) for name, rates in GPUS.items()}}
        content = {
            "items": arguments.items,
            "torch": torch.__version__,
            "assumed": assumed,
            "targets": TARGETS,
            "steps": results,
            "missed": lines,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
