"""A model, not a measurement: a step of the base size on 1 to 1,024 GPUs, from counted bytes and published speeds.

    python benchmarks/scaling.py [--measured benchmarks/results/training-2026-11-28.json] [--json FILE]

Where bytes have been measured (benchmarks/training.py), it first compares what two processes sent with what the formulas say;
then it puts the formulas to larger numbers. docs/scaling.md explains the assumptions, which stand here as constants.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm.config import load_config
from sleepfm.paths import config_root
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.run_config import RunConfig
from sleepfm.training.tracking.devices import NAMED, known_device
from sleepfm.training.tracking.step_time import Work, sent_bytes, step_seconds

RESULTS = Path(__file__).resolve().parent / "results"

ITEMS_A_GPU = 256
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Counted:
    """Of one stage at base size, as ``--dry-run`` counts it: FLOP of an item, forward and backward, bytes that an item keeps for
    the backward pass in bf16, and parameters that train.
    """

    flops: float
    kept: float
    trained: int


NEURONET = Counted(24.97e9, 38.3e6, 71_558_976)
SYNTHSLEEPNET = Counted(42.87e9, 16.7e6, 28_291_840)
CONTEXT = Counted(56.53e9, 179.7e6, 3_471_776)

# A cohort of nearly the size of SHHS, for the times: 5,000 nights of 1,000 epochs.
NIGHTS = 5_000
RECIPES = {
    "pretrain/eeg": (NEURONET, 1000 * NIGHTS),
    "pretrain/multimodal": (SYNTHSLEEPNET, 1000 * NIGHTS),
    "pretrain/context": (CONTEXT, NIGHTS),
}
SIZES = (8, 64, 512)


def base_step(zero: int, processes: int, gradient_bytes: int) -> dict[str, float]:
    """Seconds of a step of NeuroNet base with :data:`ITEMS_A_GPU` items a GPU, on H100."""
    device = known_device("NVIDIA H100 80GB HBM3")
    assert device is not None
    work = Work(ITEMS_A_GPU * NEURONET.flops, ITEMS_A_GPU * NEURONET.kept, NEURONET.trained, zero, gradient_bytes)
    return step_seconds(work, processes, device)


def recipe(name: str, processes: int) -> RunConfig:
    """The shipped configuration ``name`` for that many GPUs."""
    schema: type[RunConfig] = PretrainConfig if name.startswith("pretrain") else FinetuneConfig
    return load_config(schema, config_root() / f"{name}-{processes}gpu.yaml")


def recipe_rows() -> list[str]:
    """The table of docs/scaling.md: what each recipe states, and the minutes that the model gives."""
    rows = []
    for name, (counted, items) in RECIPES.items():
        for processes in SIZES:
            config = recipe(name, processes)
            train = config.train
            assert train.passes is not None
            micro = train.global_batch // processes
            steps = math.ceil(train.passes * items / train.global_batch)
            bits = 2 if config.deepspeed.reduce_dtype == "bf16" else 4
            work = Work(micro * counted.flops, micro * counted.kept, counted.trained, config.deepspeed.zero, bits)
            times = [step_seconds(work, processes, device) for device in NAMED]
            minutes = " | ".join(f"{steps * time['step'] / 60:.1f}" for time in times)
            efficiency = next(time["efficiency"] for time, device in zip(times, NAMED, strict=True) if device.name == "H100")
            rows.append(
                f"| `{name}-{processes}gpu.yaml` | {train.global_batch:,} | {micro} | {train.lr:g} | {train.warmup:,} "
                f"| {config.deepspeed.zero}, {config.deepspeed.reduce_dtype} | {steps:,} | {minutes} | {efficiency:.2f} |"
            )
    return rows


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
            rows = {number: base_step(zero, number, gradient_bytes) for number in NUMBERS}
            modelled[f"zero{zero}, {label}"] = rows
    print(f"\n{'modelled efficiency':<24}" + "".join(f"{number:>7}" for number in NUMBERS))
    for name, rows in modelled.items():
        print(f"{name:<24}" + "".join(f"{row['efficiency']:>7.2f}" for row in rows.values()))
        print(f"{'  nothing hidden':<24}" + "".join(f"{row['efficiency_without_overlap']:>7.2f}" for row in rows.values()))
    print("\n" + "\n".join(recipe_rows()))
    if arguments.json:
        content = {"modelled": modelled, "bytes": compared}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
