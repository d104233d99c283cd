"""A model, not a measurement: steps and runs of the base size on 1 to 1,024 GPUs, from counted bytes and published speeds.

    python benchmarks/scaling.py [--measured benchmarks/results/training-2026-11-28.json] [--json FILE]

Where bytes have been measured (benchmarks/training.py), it first compares what two processes sent with what the formulas say;
then it puts the formulas to larger numbers. docs/scaling.md explains the assumptions, which stand as constants here, in
sleepfm/training/tracking/step_time.py and run_time.py. The goodput of the base recipes is that of the run's own clock,
sleepfm/training/tracking/goodput.py, in a run whose phases take what is modelled or measured, at the shipped cadence.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sleepfm.config import load_config
from sleepfm.paths import config_root
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig
from sleepfm.training.tracking.devices import NAMED, Device, known_device
from sleepfm.training.tracking.goodput import Goodput
from sleepfm.training.tracking.run_time import Conditions, run_seconds
from sleepfm.training.tracking.step_time import (
    Contrast,
    Work,
    sent_bytes,
    step_seconds,
    transfer_seconds,
    work_of,
)
from sleepfm.training.tracking.traffic import StepTraffic, Traffic

RESULTS = Path(__file__).resolve().parent / "results"

NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Counted:
    """Of one stage at base size, as ``--dry-run`` counts it.

    Attributes:
        traffic: of a micro-step, forward and backward.
        trained: parameters that train.
        filled: items a GPU with which one is busy; scaling is told beside it.
        embedding: FLOP of the items that a validation embeds for its probes.
        weights: parameters of the whole model, which the best weights hold.
    """

    traffic: StepTraffic
    trained: int
    filled: int
    embedding: float
    weights: int

    @property
    def flops(self) -> float:
        """Of an item."""
        return self.traffic.per_item.flops

    def rate(self, device: Device) -> float:
        """FLOP/s of the forward and backward passes where one GPU is busy."""
        traffic = self.traffic.of(self.filled)
        # With nothing that trains, the arithmetic of a step is that of its passes alone.
        return traffic.flops / step_seconds(Work(traffic, 0, 0), 1, device)["arithmetic"]


# 30,000 epochs are probed, of a NeuroNet's two channels or SynthSleepNet's four: 8.87 GFLOP a channel, and 3 for its own layers.
NEURONET = Counted(
    StepTraffic(Traffic(0, 0.437e9, 0.867e9), Traffic(24.97e9, 82.6e6, 269.5e6)), 71_558_976, 256, 30_000 * 2 * 8.87e9, 71_558_976
)
SYNTHSLEEPNET = Counted(
    StepTraffic(Traffic(0, 0.911e9, 2.031e9), Traffic(48.30e9, 174.5e6, 385.5e6)),
    28_291_840,
    256,
    30_000 * (4 * 8.87e9 + 3e9),
    296_000_000,
)
CONTEXT = Counted(
    StepTraffic(Traffic(0, 0.037e9, 0.217e9), Traffic(56.53e9, 317.5e6, 2114.3e6)), 3_471_776, 64, 500 * 56.53e9 / 3, 3_471_776
)
# Of 20 epochs of SynthSleepNet's four channels, all of them present; a validation scores nights, of 1,000 epochs forward each.
FINETUNE = Counted(
    StepTraffic(Traffic(0, 0.944e9, 1.810e9), Traffic(1011.72e9, 3662.2e6, 8073.6e6)),
    2_090_965,
    32,
    1000 * 767.69e9 / 20,
    284_860_629,
)

# A cohort of nearly the size of SHHS: nights of 1,000 epochs. The recipes for 512 GPUs are for more, see docs/scaling.md.
NIGHTS = 5_000
MANY_NIGHTS = 65_000
RECIPES = {"pretrain/eeg": (NEURONET, 1000), "pretrain/multimodal": (SYNTHSLEEPNET, 1000), "pretrain/context": (CONTEXT, 1)}
# Recipe, its size, GPUs, nights.
PLACES = [
    (name, size, processes, MANY_NIGHTS if size == 512 and name != "pretrain/context" else NIGHTS)
    for name in RECIPES
    for size, processes in ((8, 8), (64, 64), (512, 512), (512, 1024))
]

# People of all of SHHS 1, and of the paper's 329, that pretrain, 70 %; and of these the 12 % with labels, and the 8 % of `val`.
PAPER_PEOPLE = (4055, 230)
PAPER_LABELLED = {4055: (695, 463), 230: (39, 26)}
PAPER_TESTED = {4055: 579, 230: 33}
# Each task has a head on all labelled epochs and one on 5 % of them (scripts/paper.py).
TASKS, FEW_LABELS = 3, 0.05
# Assumed: a head is three small layers, and its step as long as the launches of its kernels and the work of DeepSpeed's engine.
HEAD_STEP_S = 0.005
# Sequences of a night of 1,000 epochs: 20 of them, a new one every ten.
SEQUENCES = 99

# Measured at base size on two cores: 0.377 s for 1.145 GB, benchmarks/results/saving-2026-11-28.json.
SAVED_BYTES_A_S = 1.145e9 / 0.377
WRITE_BYTES_A_S = 1e9  # assumed, of the best weights while the others wait
PROBES_S = 0.5  # assumed, on a GPU
START_S, END_S = 60.0, 30.0  # assumed
# What else runs meet is as `Conditions` assumes it.
ASSUMED: Mapping[str, float] = {}


def h100() -> Device:
    device = known_device("NVIDIA H100 80GB HBM3")
    assert device is not None
    return device


def filled_step(counted: Counted, device: Device) -> float:
    """Seconds for an item of one busy GPU alone, without ZeRO."""
    width = {NEURONET: 512, SYNTHSLEEPNET: 256}.get(counted)
    contrast = Contrast(counted.filled, width, 1 if counted is NEURONET else 4, 1) if width else None
    work = Work(counted.traffic.of(counted.filled), counted.trained, 0, 4, contrast)
    return step_seconds(work, 1, device)["step"] / counted.filled


def base_step(zero: int, processes: int, gradient_bytes: int, ranks: int) -> dict[str, float]:
    """Seconds of a step of NeuroNet base with 256 items a GPU on H100, each compared with those of ``ranks`` ranks."""
    counted = NEURONET
    contrast = Contrast(counted.filled, 512, 1, min(ranks, processes))
    work = Work(counted.traffic.of(counted.filled), counted.trained, zero, gradient_bytes, contrast)
    step = step_seconds(work, processes, h100())
    ideal = filled_step(counted, h100()) * counted.filled
    return step | {
        "efficiency": ideal / step["step"],
        "efficiency_without_overlap": ideal / step["step_without_overlap"],
    }


def exchanges() -> dict[str, dict[str, float]]:
    """What the contrastive loss of NeuroNet base costs on 1,024 H100 with 256 items each: as it was, and by ``negatives``."""
    pairs, width, processes = 256, 512, 1024
    # An all-gather of fp32 embeddings forward and an all-reduce of everyone's gradients backward.
    before = 3 * (processes - 1) * 2 * pairs * width * 4
    found = {"before": {"gigabytes": before / 1e9, "exchange_ms": 1000 * transfer_seconds(before, processes, h100())}}
    for name, ranks in (("global", processes), ("{group: 512}", 512), ("{group: 64}", 64), ("node", 8)):
        contrast = Contrast(pairs, width, 1, ranks)
        found[name] = {
            "gigabytes": contrast.sent_bytes / 1e9,
            "exchange_ms": 1000 * transfer_seconds(contrast.sent_bytes, ranks, h100()),
            "arithmetic_ms": 1000 * contrast.seconds(h100()),
        }
    return found


def recipe(name: str, size: str) -> RunConfig:
    """The shipped configuration ``name`` for ``size``, such as ``64gpu`` or ``base``."""
    downstream = ProbeConfig if "/probe-" in name else FinetuneConfig
    schema: type[RunConfig] = PretrainConfig if name.startswith("pretrain/") else downstream
    return load_config(schema, config_root() / f"{name}-{size}.yaml")


def conditions(config: RunConfig, counted: Counted, processes: int, device: Device, step_s: float) -> Conditions:
    """The cadence of ``config``, and what a save takes and a validation: embedding and the loss, which ranks share, and probes
    and writing, which are rank 0's.
    """
    shared = counted.embedding + (config.validated_items() or 0) * counted.flops / 3
    validation = shared / counted.rate(device) / processes + PROBES_S + 4 * counted.weights / WRITE_BYTES_A_S
    train = config.train
    # Weights and, of what trains, a master copy and two moments, all in fp32.
    save = 4 * (counted.weights + 3 * counted.trained) / SAVED_BYTES_A_S
    late = train.checkpoint_minutes * 60 / step_s if train.checkpoint_minutes else math.inf
    return Conditions(
        validation_s=validation,
        validate_every=train.validate_every,
        save_s=save,
        save_every=min(train.checkpoint_every, late),
        start_s=START_S,
        end_s=END_S,
    )


def steps_of(config: RunConfig, nights: int, items_a_night: int) -> int:
    assert config.train.passes is not None
    return math.ceil(config.train.passes * items_a_night * nights / config.train.global_batch)


def modelled(
    name: str,
    size: str,
    processes: int,
    device: Device,
    nights: int,
    assumed: Mapping[str, float] = ASSUMED,
    of: tuple[Counted, int] | None = None,
) -> dict[str, float]:
    """A run of the recipe: its steps, seconds by cause, goodput, and ``efficiency``: what a GPU does in it beside one that is
    busy and alone, with everything counted but start and end. ``of``: what an item takes and how many a night has, where
    :data:`RECIPES` does not say it.
    """
    counted, items = of or RECIPES[name]
    config = recipe(name, size)
    work = work_of(config, processes, counted.traffic, counted.trained)
    step = step_seconds(work, processes, device)
    steps = steps_of(config, nights, items)
    met = replace(conditions(config, counted, processes, device, step["step"]), **assumed)
    run = run_seconds(step["step"], steps, processes, met)
    ideal = filled_step(counted, device) * config.train.global_batch / processes
    return step | run | {"steps": steps, "efficiency": ideal / step["step"] * run["steady"]}


def recipe_rows(assumed: Mapping[str, float] = ASSUMED) -> list[str]:
    """The table of docs/scaling.md: what each recipe states, and what the model gives."""
    rows = []
    for name, size, processes, nights in PLACES:
        config = recipe(name, f"{size}gpu")
        train, negatives, batch = config.train, config.negatives(), config.train.global_batch
        runs = {device.name: modelled(name, f"{size}gpu", processes, device, nights, assumed) for device in NAMED}
        minutes = " | ".join(f"{runs[device.name]['all'] / 60:.1f}" for device in NAMED)
        compared = negatives if isinstance(negatives, str) else f"{negatives.group} ranks"
        of_h100 = runs["H100"]
        rows.append(
            f"| `{name}-{size}gpu.yaml` | {processes:,} | {nights:,} | {batch:,} | {batch // processes} "
            f"| {compared if config.contrasts()[0] else 'none'} | {train.lr:g} | {of_h100['steps']:,} | {minutes} "
            f"| {of_h100['efficiency']:.2f} | {of_h100['goodput']:.2f} |"
        )
    return rows


def paper_rows(assumed: Mapping[str, float] = ASSUMED) -> list[str]:
    """The table of docs/paper.md: GPU hours of the base configurations on one GPU, and hours on eight."""

    def hours(name: str, nights: int, processes: int, device: Device) -> float:
        return modelled(f"pretrain/{name}", "base", processes, device, nights, assumed)["all"] / 3600

    def row(title: str, value: Callable[[int, Device], float], unit: str = "") -> str:
        cells = [", ".join(f"{device.name} {_short(value(people, device))}{unit}" for device in NAMED) for people in PAPER_PEOPLE]
        return f"| {title} | {' | '.join(cells)} |"

    # A night of two channels is two nights to a NeuroNet.
    one = partial(hours, "eeg")

    def whole(processes: int, people: int, device: Device) -> float:
        neuronets = 2 * one(people, processes, device) + 2 * one(2 * people, processes, device)
        return neuronets + hours("multimodal", people, processes, device)

    def finetune(processes: int, people: int, device: Device) -> float:
        labelled, validating = PAPER_LABELLED[people]
        of = replace(FINETUNE, embedding=validating * FINETUNE.embedding), SEQUENCES
        return modelled("downstream/finetune-stage", "base", processes, device, labelled, assumed, of)["all"] / 3600

    def heads(people: int, device: Device) -> float:
        # The encoder sees each epoch once, for all heads; a validation's FLOP are those of 30,000 epochs.
        epochs = 1000 * (sum(PAPER_LABELLED[people]) + PAPER_TESTED[people])
        embedding = epochs * SYNTHSLEEPNET.embedding / 30_000 / SYNTHSLEEPNET.rate(device)
        steps = steps_of(recipe("downstream/probe-stage", "base"), PAPER_LABELLED[people][0], 1000)
        return (embedding + TASKS * (1 + FEW_LABELS) * steps * HEAD_STEP_S + 2 * TASKS * (START_S + END_S)) / 3600

    return [
        row("NeuroNet, EMG or ECG, each (one channel, 20 passes)", lambda people, device: one(people, 1, device)),
        row("NeuroNet, EEG or EOG, each (two channels, 20 passes)", lambda people, device: one(2 * people, 1, device)),
        row("SynthSleepNet (100 passes)", lambda people, device: hours("multimodal", people, 1, device)),
        row("all of pretraining", partial(whole, 1)),
        row("the same on eight GPUs, wall time", partial(whole, 8), " h"),
        row("six heads on the frozen encoder, all together (12 % of the people, 100 passes)", heads),
        row("fine-tune, each of three (12 % of the people, 30 passes)", partial(finetune, 1)),
        row("all three on eight GPUs, wall time", lambda people, device: 3 * finetune(8, people, device), " h"),
    ]


def _short(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 20 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


class Simulated:
    """The clock of a run in which time passes by the word."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(name: str, nights: int, folder: Path) -> dict[str, Any]:
    """The base recipe ``name`` on one H100, as the run's own clock of goodput sees it: every step, validation and save at the
    shipped cadence (``train.checkpoint_minutes`` as well), each as long as modelled or measured.
    """
    counted, items = RECIPES[name]
    config, device = recipe(name, "base"), h100()
    train = config.train
    work = work_of(config, 1, counted.traffic, counted.trained)
    step_s, steps = step_seconds(work, 1, device)["step"], steps_of(config, nights, items)
    met = conditions(config, counted, 1, device, step_s)
    clock = Simulated()
    goodput = Goodput(World(0, 1, 0, 1), RunFolder(folder), 0, began=0.0, clock=clock)
    clock.now += met.start_s
    saved = clock.now
    for step in range(1, steps + 1):
        goodput.begins(step)
        goodput.at(f"waiting for data of step {step}")
        clock.now += step_s * met.data
        goodput.at(f"in the forward pass of step {step}")
        clock.now += step_s
        if step == steps or step % train.validate_every == 0:
            goodput.at(f"validating step {step}", patient=True)
            clock.now += met.validation_s
        late = 0 < train.checkpoint_minutes * 60 <= clock.now - saved
        if step == steps or step % train.checkpoint_every == 0 or late:
            goodput.at(f"saving step {step}", patient=True)
            clock.now += met.save_s
            saved = clock.now
    goodput.at("exporting", patient=True)
    clock.now += met.end_s
    goodput.close()
    return goodput.summary() | {"steps": steps, "step_s": step_s, "validation_s": met.validation_s}


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
    parser.add_argument("--mtbf-hours", type=float, default=50_000.0, help="between failures of a GPU with its share of a node")
    parser.add_argument("--restart-s", type=float, default=180.0, help="from a failure to the first new step")
    parser.add_argument("--spread", type=float, default=0.01, help="standard deviation of a rank's steps, as a share of a step")
    arguments = parser.parse_args()
    assumed = {"gpu_mtbf_h": arguments.mtbf_hours, "restart_s": arguments.restart_s, "spread": arguments.spread}
    compared = {}
    if arguments.measured.exists():
        compared = compare(json.loads(arguments.measured.read_text())["cases"])
        print(f"{'two processes':<14}{'measured MB':>12}{'formula MB':>12}{'ratio':>8}")
        for name, row in compared.items():
            print(f"{name:<14}{row['measured'] / 1e6:>12.1f}{row['formula'] / 1e6:>12.1f}{row['ratio']:>8.2f}")
    else:
        print(f"{arguments.measured}: no such file, so the formulas' bytes are not compared with measured ones")
    weak: dict[str, dict[int, dict[str, float]]] = {}
    for negatives, ranks in (("global", 1024), ("{group: 64}", 64), ("node", 8)):
        for zero, gradient_bytes in ((0, 2), (1, 2), (1, 4)):
            label = f"{negatives}, zero{zero}, {'fp32' if gradient_bytes == 4 else 'bf16'} gradients"
            weak[label] = {number: base_step(zero, number, gradient_bytes, ranks) for number in NUMBERS}
    print(f"\n{'modelled efficiency of a step':<36}" + "".join(f"{number:>7}" for number in NUMBERS))
    for name, rows in weak.items():
        print(f"{name:<36}" + "".join(f"{row['efficiency']:>7.2f}" for row in rows.values()))
        print(f"{'  nothing hidden':<36}" + "".join(f"{row['efficiency_without_overlap']:>7.2f}" for row in rows.values()))
    exchanged = exchanges()
    print("\nthe contrastive loss at 1,024 ranks of 256 items")
    for name, figures in exchanged.items():
        print(f"{name:<14}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    print("\n" + "\n".join(recipe_rows(assumed)))
    print("\n" + "\n".join(paper_rows(assumed)))
    simulated = {}
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            simulated[name] = simulate(name, NIGHTS, Path(folder))
        print(f"{name}-base on one H100: goodput {simulated[name]['share']:.3f} {simulated[name]}")
    shares = {
        name: {device.name: counted.flops / filled_step(counted, device) / device.bf16 for device in NAMED}
        for name, counted in (("NeuroNet", NEURONET), ("SynthSleepNet", SYNTHSLEEPNET))
    }
    for name, share in shares.items():
        print(f"{name}: MFU of a busy GPU " + ", ".join(f"{device} {value:.2f}" for device, value in share.items()))
    if arguments.json:
        runs = {
            f"{name}-{size}gpu on {processes}": modelled(name, f"{size}gpu", processes, h100(), nights, assumed)
            for name, size, processes, nights in PLACES
        }
        content = {
            "modelled": weak,
            "bytes": compared,
            "contrast": exchanged,
            "recipes": runs,
            "simulated": simulated,
            "mfu": shares,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
