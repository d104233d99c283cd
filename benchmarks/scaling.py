"""A model, not a measurement: a step of the base size on 1 to 1,024 GPUs, from counted bytes and published speeds.

    python benchmarks/scaling.py [--measured benchmarks/results/training-2026-11-28.json] [--json FILE]

Where bytes have been measured (benchmarks/training.py), it first compares what two processes sent with what the formulas say;
then it puts the formulas to larger numbers. docs/scaling.md explains the assumptions, which stand here as constants.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

PARAMETERS = 71_587_392  # NeuroNet base, all of which train
ITEM_FLOPS = 24.97e9  # forward and backward of an item, NeuroNet base, as `--dry-run` counts them
PEAK = 989e12  # bf16 FLOP/s of an H100 SXM, nvidia.com/en-us/data-center/h100
SHARE_OF_PEAK = 0.30  # assumed, not measured
NVLINK = 450e9  # bytes/s and direction of a GPU's NVLink 4 (900 GB/s in both), same page
NETWORK = 50e9  # bytes/s of one 400 Gb/s port a GPU, nvidia.com/en-us/networking/products/infiniband/quantum-2
SHARE_OF_LINK = 0.7  # assumed of both links
LATENCY = 10e-6  # assumed seconds a hop between nodes
GPUS_A_NODE = 8
OVERLAP = 0.5  # assumed share of the backward pass (two thirds of the arithmetic) that hides communication
ITEMS_A_GPU = 256
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def sent_bytes(zero: int, parameters: float, processes: int, gradient_bytes: int = 4, parameter_bytes: int = 4) -> float:
    """Bytes that a process sends in a step of one micro-step, by rings.

    Without ZeRO an all-reduce of gradients: 2 (N - 1) / N of them. ZeRO 1 and 2: the same, and an all-gather of parameters; the
    paper's reduce-scatter would send half of the gradients (Rajbhandari et al. 2020, section 7), but DeepSpeed by default reduces
    buckets that hold parts of several ranks as a whole (``use_multi_rank_bucket_allreduce``).
    """
    share = (processes - 1) / processes
    gradients = parameters * gradient_bytes * share
    gathered = parameters * parameter_bytes * share
    return 2 * gradients + (gathered if zero else 0.0)


def step_seconds(zero: int, parameters: float, processes: int, gradient_bytes: int) -> dict[str, float]:
    """Seconds of a step with :data:`ITEMS_A_GPU` items a GPU."""
    arithmetic = ITEMS_A_GPU * ITEM_FLOPS / (PEAK * SHARE_OF_PEAK)
    sent = sent_bytes(zero, parameters, processes, gradient_bytes)
    nodes = math.ceil(processes / GPUS_A_NODE)
    # As many rings as a node has ports, each with its part of the bytes, cross between nodes by a port of their own. A ring is as
    # fast as its slowest link; hops between nodes count, in trees of their number.
    link = (NVLINK if nodes == 1 else min(NVLINK, GPUS_A_NODE * NETWORK)) * SHARE_OF_LINK
    hops = 2 * LATENCY * math.ceil(math.log2(nodes)) if nodes > 1 else 0.0
    communication = sent / link + hops if processes > 1 else 0.0
    hidden = min(communication, OVERLAP * arithmetic * 2 / 3)
    return {
        "arithmetic": arithmetic,
        "communication": communication,
        "step": arithmetic + communication - hidden,
        "efficiency": arithmetic / (arithmetic + communication - hidden),
        "efficiency_without_overlap": arithmetic / (arithmetic + communication),
    }


def compare(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Measured bytes beside the formulas', of two processes; not of ``zero1-reduced``, which has no formula here."""
    stages = {"ddp": 0} | {f"zero{zero}": zero for zero in range(3)}
    found = {}
    for name, case in cases.items():
        measured, variant = case.get("bytes_sent_a_process_and_step"), name.split("-", 1)[1]
        if measured and variant in stages:
            expected = sent_bytes(stages[variant], case["trained_parameters"], case["processes"])
            found[name] = {"measured": measured, "formula": expected, "ratio": measured / expected}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=RESULTS / "training-2026-11-28.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    compared = {}
    if arguments.measured.exists():
        compared = compare(json.loads(arguments.measured.read_text())["cases"])
        print(f"{'two processes':<14}{'measured MB':>12}{'formula MB':>12}{'ratio':>8}")
        for name, row in compared.items():
            print(f"{name:<14}{row['measured'] / 1e6:>12.1f}{row['formula'] / 1e6:>12.1f}{row['ratio']:>8.2f}")
    else:
        print(f"{arguments.measured}: no such file, so the formulas' bytes are not compared with measured ones")
    modelled: dict[str, dict[int, dict[str, float]]] = {}
    for label, gradient_bytes in (("fp32 gradients", 4), ("bf16 gradients", 2)):
        for zero in (0, 1):
            rows = {number: step_seconds(zero, PARAMETERS, number, gradient_bytes) for number in NUMBERS}
            modelled[f"zero{zero}, {label}"] = rows
    print(f"\n{'modelled efficiency':<24}" + "".join(f"{number:>7}" for number in NUMBERS))
    for name, rows in modelled.items():
        print(f"{name:<24}" + "".join(f"{row['efficiency']:>7.2f}" for row in rows.values()))
        print(f"{'  nothing hidden':<24}" + "".join(f"{row['efficiency_without_overlap']:>7.2f}" for row in rows.values()))
    if arguments.json:
        content = {"modelled": modelled, "bytes": compared}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
