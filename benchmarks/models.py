"""Training steps of the models, and of the released code beside them where a checkout of it is at hand.

    python benchmarks/models.py [--reference CHECKOUT] [--only CASE,...] [--threads N] [--steps N] [--rounds N]
        [--batch N] [--device cpu|cuda] [--json F]

Every figure comes from a process of its own: the median time of a training step (forward, backward, AdamW) after a first one
that does not count, its processor time over all threads (which a busy machine disturbs less), and the peak resident memory (on
CUDA the peak allocation); the least of ``--rounds``, in which variants take turns. Of it "work GB" is what an implementation
decides: not the process with its libraries, nor weights, gradients and the optimiser's moments, which both sides must hold.
`flops` counts the matrix products and convolutions of one step of ours, forward and backward.
Inputs and threads are the same on both sides; the released code runs in fp32 and with AdamW as torch makes it by default, as it
is released, ours with the fused one. CHECKOUT is github.com/dlcjfgmlnasa/SynthSleepNet, with timm, peft and einops installed; its
Mamba-2 needs CUDA, so this project's stands in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"
CHANNELS = ("EEG_C4", "EOG_Left", "EMG_Chin", "ECG")
NEURONET_GFLOP = 25.4  # forward and backward of one epoch of the base size


@dataclass(frozen=True)
class Variant:
    """``prepare(device)`` gives a model and the losses of one step, each followed by its backward pass."""

    prepare: Callable[[str], tuple[Any, list[Callable[[], Any]]]]
    epochs: int
    precision: str = "fp32"
    recompute: bool = False


def cases(batch: int = 16) -> dict[str, dict[str, Variant]]:
    """Every case with its variants; later ones are compared with the first. ``batch`` is of the base sizes."""
    return {
        "neuronet-base": {
            "released": Variant(released_neuronet(batch), batch),
            "ours fp32": Variant(neuronet("base", batch), batch),
            "ours bf16": Variant(neuronet("base", batch), batch, "bf16"),
            "ours recomputed": Variant(neuronet("base", batch), batch, recompute=True),
        },
        "synthsleepnet-base": {
            "released": Variant(released_synthsleepnet(batch), batch),
            "ours fp32": Variant(synthsleepnet("base", batch), batch),
            "ours bf16": Variant(synthsleepnet("base", batch), batch, "bf16"),
            "ours recomputed": Variant(synthsleepnet("base", batch), batch, recompute=True),
        },
        "context-20": {
            "released": Variant(released_downstream(2, 20), 40),
            "ours fp32": Variant(downstream(2, 20), 40),
            "ours bf16": Variant(downstream(2, 20), 40, "bf16"),
            "ours recomputed": Variant(downstream(2, 20), 40, recompute=True),
        },
        "nt-xent": {
            "released": Variant(contrast(256, released=True), 256),
            "ours fp32": Variant(contrast(256), 256),
            **{f"ours, {pairs} pairs": Variant(contrast(pairs), pairs) for pairs in (2048, 4096, 8192)},
        },
        "channel-sets": {
            "one set a batch": Variant(synthsleepnet("base", 16, ["4", "2"]), 32, "bf16"),
            "sets mixed": Variant(synthsleepnet("base", 16, ["mixed", "mixed"]), 32, "bf16"),
        },
        "neuronet-tiny": {
            "ours fp32": Variant(neuronet("tiny", 64), 64),
            "ours bf16": Variant(neuronet("tiny", 64), 64, "bf16"),
        },
        "synthsleepnet-tiny": {
            "ours fp32": Variant(synthsleepnet("tiny", 64), 64),
            "ours bf16": Variant(synthsleepnet("tiny", 64), 64, "bf16"),
        },
        "mamba-length": {f"{length} epochs": Variant(mamba(length), length) for length in (350, 700, 1400, 2800)},
    }


def build(name: str, **changes: Any) -> Any:
    from sleepfm.config import read_yaml
    from sleepfm.models.build import build_model

    return build_model(read_yaml(CONFIGS / f"{name}.yaml")["model"] | changes)


def neuronet(size: str, batch: int) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch

        model = build(f"neuronet-{size}").to(device)
        signals = torch.randn(batch, 3000, device=device)
        noise = torch.rand(batch, *model.noise_shape, device=device)
        return model, [lambda: model(signals, noise).loss]

    return prepare


def synthsleepnet(size: str, batch: int, sets: list[str] | None = None) -> Callable[[str], Any]:
    """One loss per entry of ``sets``: all epochs with 4 channels, all with 2, or half and half ``mixed``."""

    def prepare(device: str) -> Any:
        import torch

        model = build(f"synthsleepnet-{size}").to(device)
        signals = torch.randn(batch, 4, 3000, device=device)
        noise = torch.rand(batch, *model.noise_shape, device=device)
        four = torch.ones(batch, 4, dtype=torch.bool, device=device)
        two = four & torch.tensor([True, True, False, False], device=device)
        present = {"4": four, "2": two, "mixed": torch.cat([four[::2], two[1::2]])}
        return model, [lambda key=key: model(signals, present[key], noise).loss for key in sets or ["4"]]

    return prepare


def downstream(batch: int, length: int) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch
        from torch.nn import functional as F

        from sleepfm.models.build import build_model
        from sleepfm.models.synthsleepnet import SynthSleepNet

        encoder = build("synthsleepnet-paper")
        assert isinstance(encoder, SynthSleepNet)
        config = {
            "kind": "downstream",
            "task": "stage",
            "classes": list("abcde"),
            "encoder": encoder.config.model_dump(mode="json"),
            "tune": {"mode": "lora"},
            "context": {"kind": "mamba"},
        }
        del encoder
        model = build_model(config).to(device)
        signals = torch.randn(batch, length, 4, 3000, device=device)
        present = torch.ones(batch, length, 4, dtype=torch.bool, device=device)
        truth = torch.randint(5, (batch * length,), device=device)
        return model, [lambda: F.cross_entropy(model(signals, present).flatten(0, 1).float(), truth)]

    return prepare


def contrast(batch: int, released: bool = False) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch
        from torch import nn

        from sleepfm.models.losses import nt_xent

        holder = nn.ParameterList(nn.Parameter(torch.randn(batch, 512, device=device)) for _ in range(2))
        if released:
            loss = importlib.import_module("models.loss").NTXentLoss(0.1)
            return holder, [lambda: loss(holder[0], holder[1])[0]]
        return holder, [lambda: nt_xent(holder[0], holder[1], 0.1)]

    return prepare


def mamba(length: int) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch

        from sleepfm.models.mamba import Mamba2

        model = Mamba2(512, 16, 4, 2, 64).to(device)
        x = torch.randn(1, length, 512, device=device)
        return model, [lambda: model(x).square().mean()]

    return prepare


RELEASED_ENCODER = {"encoder_embed_dim": 768, "encoder_heads": 8, "encoder_depths": 4}
RELEASED_UNIMODAL = {"fs": 100, "second": 30, "time_window": 4, "time_step": 1, **RELEASED_ENCODER}
RELEASED_DECODER = {"decoder_embed_dim": 256, "decoder_heads": 8, "decoder_depths": 3}
RELEASED_FUSION = {
    "backbone_embed_dim": 768,
    "num_backbone_frames": 27,
    "encoder_embed_dim": 512,
    "encoder_heads": 8,
    "encoder_depths": 4,
}


def released_neuronet(batch: int) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch

        module = importlib.import_module("models.neuronet.model")
        sizes = {**RELEASED_UNIMODAL, **RELEASED_DECODER, "projection_hidden": [1024, 512], "temperature": 0.05}
        model = module.NeuroNet(**sizes).to(device)
        signals = torch.randn(batch, 3000, device=device)

        def loss() -> Any:
            reconstruction, contrastive, _ = model(signals, mask_ratio=0.8)
            return reconstruction + contrastive

        return model, [loss]

    return prepare


def _released_backbones() -> dict[str, Any]:
    peft = importlib.import_module("peft")
    settings = peft.LoraConfig(
        r=4, lora_alpha=16, lora_dropout=0.05, use_rslora=True, init_lora_weights="gaussian", target_modules=["attn.proj"]
    )
    encoder = importlib.import_module("models.neuronet.model").NeuroNetEncoder
    return {name: peft.get_peft_model(encoder(**RELEASED_UNIMODAL), settings) for name in CHANNELS}


def released_synthsleepnet(batch: int) -> Callable[[str], Any]:
    def prepare(device: str) -> Any:
        import torch

        module = importlib.import_module("models.unified.model")
        extra = {**RELEASED_DECODER, "projection_hidden": [512, 256], "temperature": 0.1}
        model = module.SynthSleepNet(_released_backbones(), **RELEASED_FUSION, **extra).to(device)
        signals = {name: torch.randn(batch, 3000, device=device) for name in CHANNELS}

        def loss() -> Any:
            reconstruction, contrastive, _ = model(signals, mask_ratio=0.4)
            return reconstruction + contrastive

        return model, [loss]

    return prepare


def released_downstream(batch: int, length: int) -> Callable[[str], Any]:
    """The fine-tuning network with its loops over epochs, on an encoder that comes from no file."""

    def prepare(device: str) -> Any:
        import torch
        from torch.nn import functional as F

        from sleepfm.models.mamba import Mamba2

        stand_in = types.ModuleType("mamba_ssm")
        stand_in.Mamba2 = Mamba2  # type: ignore[attr-defined]
        sys.modules.setdefault("mamba_ssm", stand_in)
        encoder = importlib.import_module("models.unified.model").SynthSleepNetEncoder(_released_backbones(), **RELEASED_FUSION)
        encoder.requires_grad_(False)
        module: Any = importlib.import_module("downstream.fine_tuning.model")
        module.load_pretrained_model = lambda _: (encoder, list(CHANNELS), 512)
        model = module.Model("", length, 5).to(device)
        signals = {name: torch.randn(batch, length, 3000, device=device) for name in CHANNELS}
        truth = torch.randint(5, (batch * length,), device=device)
        return model, [lambda: F.cross_entropy(model(signals).flatten(0, 1), truth)]

    return prepare


@contextmanager
def _bf16(device: str) -> Iterator[None]:
    """The engine's bf16: autocast, with fp32 kernels for rounded operands where the processor has no bf16 instructions."""
    import torch

    from sleepfm.training.ranks.precision import bf16_products

    with torch.autocast(device, torch.bfloat16), bf16_products(device):
        yield


def _resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(case: str, name: str, device: str, threads: int, steps: int, reference: str, batch: int) -> dict[str, float]:
    """Median seconds of a step, wall and processor, and peak memory in GB, in this process."""
    import torch

    from sleepfm.heap import keep_freed_memory

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if reference:
        sys.path.insert(0, reference)
    if device == "cpu" and name != "released":
        # As jobs do.
        keep_freed_memory()
    variant = cases(batch)[case][name]
    model, losses = variant.prepare(device)
    model.train()
    if variant.recompute:
        from sleepfm.models.recompute import recompute_activations

        recompute_activations(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=None if name == "released" else True)
    around = _resident() - sum(p.nbytes for p in model.parameters()) if device == "cpu" else 0
    half = ExitStack if variant.precision == "fp32" else partial(_bf16, device)
    seconds, processor = [], []
    for _ in range(1 + steps):
        begin, begin_processor = time.perf_counter(), time.process_time()
        for loss in losses:
            with half():
                value = loss()
            value.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Weights; of those that train also the gradient and both moments.
    held = sum(p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters())
    counts = {} if name == "released" else {"flops": count_flops(losses, half)}
    return {
        "seconds": statistics.median(seconds[1:]),
        "processor_seconds": statistics.median(processor[1:]),
        "gigabytes": peak / 1e9,
        "held_gigabytes": held / 1e9,
        "working_gigabytes": (peak - around - held) / 1e9,
        **counts,
    }


def count_flops(losses: list[Callable[[], Any]], half: Callable[[], AbstractContextManager[Any]]) -> float:
    """Arithmetic of the products and convolutions of a step, forward and backward."""
    from counted import Counting

    with Counting() as counting:
        for loss in losses:
            with half():
                value = loss()
            value.backward()
    return counting.step.flops


def measured(case: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of every variant of ``case``, in turns, each in a process of its own; the fastest of its rounds."""
    found: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for name in cases(arguments.batch)[case]:
            if name == "released" and not arguments.reference:
                continue
            own = ["--one", case, name, "--reference", arguments.reference, "--device", arguments.device]
            own += ["--threads", str(arguments.threads), "--steps", str(arguments.steps), "--batch", str(arguments.batch)]
            done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{case}, {name}:\n{done.stderr[-2000:]}")
            now = json.loads(done.stdout.splitlines()[-1])
            found[name] = {key: min(value, found.get(name, now)[key]) for key, value in now.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="", metavar="CHECKOUT")
    parser.add_argument("--only", default="", metavar="CASE,...", help=", ".join(cases()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="times that variants are measured in turns (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="epochs a step of the base sizes (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there, beside those of other cases")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, name = arguments.one
        result = measure(case, name, arguments.device, arguments.threads, arguments.steps, arguments.reference, arguments.batch)
        print(json.dumps(result))
        return
    table: dict[str, dict[str, dict[str, float]]] = {}
    chosen = [name for name in arguments.only.split(",") if name] or list(cases())
    heading = ("s/step", "epochs/s", "cpu s", "GB", "work GB", "faster", "cpu", "memory", "work")
    print(f"{'case':<20}{'variant':<18}" + "".join(f"{word:>10}" for word in heading), flush=True)
    for case in chosen:
        first: dict[str, float] | None = None
        for name, found in measured(case, arguments).items():
            variant = cases(arguments.batch)[case][name]
            first = first or found
            found["epochs_per_second"] = variant.epochs / found["seconds"]
            found["faster"] = first["seconds"] / found["seconds"]
            table.setdefault(case, {})[name] = found
            figures = (
                f"{found['seconds']:.3f}",
                f"{found['epochs_per_second']:.1f}",
                f"{found['processor_seconds']:.3f}",
                f"{found['gigabytes']:.2f}",
                f"{found['working_gigabytes']:.2f}",
                f"{found['faster']:.2f}x",
                f"{first['processor_seconds'] / found['processor_seconds']:.2f}x",
                f"{found['gigabytes'] / first['gigabytes']:.2f}x",
                f"{found['working_gigabytes'] / first['working_gigabytes']:.2f}x",
            )
            print(f"{case:<20}{name:<18}" + "".join(f"{figure:>10}" for figure in figures), flush=True)
            if case == "neuronet-base" and arguments.device == "cuda":
                print(f"{'':<20}{NEURONET_GFLOP * found['epochs_per_second'] / 1e3:.1f} TFLOP/s")
    # Cores differ.
    machine = describe()
    print(machine)
    if arguments.json:
        known = json.loads(arguments.json.read_text())["cases"] if arguments.json.exists() else {}
        how = {"threads": arguments.threads, "steps": arguments.steps, "rounds": arguments.rounds}
        how |= {"batch": arguments.batch}
        content = {"machine": machine, **how, "cases": known | table}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
