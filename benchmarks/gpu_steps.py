"""Parts of ``gpu.py`` that take training steps in this process: stages, the loader beside a step, fused Mamba beside ours."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_parts import REPOSITORY, Options, Row, seconds_of
from torch import Tensor, nn

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.models import guards
from sleepfm.models import mamba as own_mamba
from sleepfm.models.device import set_tf32
from sleepfm.models.recompute import is_unit
from sleepfm.registry.registry import load_package
from sleepfm.stages.context import ContextStage
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.stages.probe import ProbeStage
from sleepfm.training.compilation import compile_module
from sleepfm.training.feed import Feed, Shares
from sleepfm.training.job import Context
from sleepfm.training.ranks.precision import autocast
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.schedule import parameter_groups
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.flops import item_flops, peak_flops

# Recipes by the kind of stage, without the size.
RECIPES = {
    "unimodal": "pretrain/eeg",
    "multimodal": "pretrain/multimodal",
    "context": "pretrain/context",
    "probe": "downstream/probe-stage",
    "finetune": "downstream/finetune-stage",
}
# Arithmetic of a step: its name, its type, and whether it is compiled.
VARIANTS = (("bf16", "bf16", False), ("fp32", "fp32", False), ("bf16 compiled", "bf16", True))
REHEARSED = ["train.global_batch=4", "train.accumulation=1"]


def stage_of(kind: str, options: Options) -> Stage:
    """The stage of the recipe on the data set and the packages of the part ``data``."""
    packages: Path = options.packages
    settings = [f"data.path={options.data}", f"train.output={options.scratch / kind}", *(REHEARSED if options.rehearse else [])]
    if kind == "multimodal":
        settings += [f"encoders.{name}={packages / name}" for name in ("EEG", "EOG", "EMG", "ECG")]
    elif kind != "unimodal":
        settings += [f"encoder={packages / 'synthsleepnet'}"]
    settings += [f"cache={options.scratch / 'embeddings'}"] if kind in ("context", "probe") else []
    settings += ["model.length=10", "model.span=2"] if kind == "context" and options.rehearse else []
    settings += ["sequence.length=3", "sequence.stride=3"] if kind == "finetune" and options.rehearse else []
    schema: Any = {"probe": ProbeConfig, "finetune": FinetuneConfig}.get(kind, PretrainConfig)
    config = load_config(schema, REPOSITORY / "configs" / f"{RECIPES[kind]}-{options.size}.yaml", settings)
    context = Context(ALONE.world, "", "never", config)
    work = SharedWork(ALONE.world, "bf16", device=options.device)
    if kind == "context":
        return ContextStage(config, load_package(context.pull(config.encoder)), work)
    if kind in ("probe", "finetune"):
        return {"probe": ProbeStage, "finetune": FinetuneStage}[kind](config, context.pull(config.encoder), work)
    return build_stage(config, context)


class Steps:
    """Training steps of a stage on one batch. The rate is 0, so that every variant starts from the same weights."""

    def __init__(self, stage: Stage, options: Options) -> None:
        self.stage, self._options = stage, options
        self.config: Any = getattr(stage, "config")  # noqa: B009 (no part of what the engine knows)
        self.items = Shares.of(self.config.train, ALONE.world).micro_batch
        self.module = stage.module.to(options.device).train()
        groups = parameter_groups(self.module, self.config.train.weight_decay)
        self._optimiser = torch.optim.AdamW(groups, lr=0.0, fused=True)
        self.batch = stage.stream.batch(0, self.items).to(options.device)

    def take(self, dtype: str) -> Tensor:
        """Forward, backward and update of one micro-step of the recipe; the loss."""
        with autocast(self._options.device, dtype), guards.only_if(False):
            loss = self.stage.loss(self.module, self.batch, 0).loss
            loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return loss.detach()


def step(options: Options, kind: str) -> Iterator[Row]:
    """A stage's step in fp32, in bf16 and compiled."""
    began = time.perf_counter()
    steps = Steps(stage_of(kind, options), options)
    flops = item_flops(steps.stage, ALONE.world)
    epochs = steps.items * steps.stage.epochs_per_item
    yield {"what": f"{kind} {options.size}", "items": steps.items, "epochs": epochs, "gflop_an_item": flops / 1e9} | {
        "seconds_to_build": time.perf_counter() - began
    }
    losses: dict[str, float] = {}
    for name, dtype, compiled in VARIANTS:
        try:
            row = _variant(steps, options, dtype, compiled, losses)
        except (torch.OutOfMemoryError, ConfigError) as error:
            torch.cuda.empty_cache()
            yield {"what": f"{kind} {options.size}, {name}", "error": str(error).splitlines()[0]}
            continue
        losses[name] = row["loss"]
        peak, _ = peak_flops(options.device, dtype)
        seconds = row["seconds"]
        yield {"what": f"{kind} {options.size}, {name}", "epochs_per_s": epochs / seconds} | {
            "mfu": flops * steps.items / seconds / peak,
            **row,
        }
    known = {name: value for name, value in losses.items() if math.isfinite(value)}
    if len(known) < len(losses) or not losses:
        raise SystemExit(f"losses that are not finite: {losses}")


def _variant(steps: Steps, options: Options, dtype: str, compiled: bool, losses: dict[str, float]) -> Row:
    if compiled and options.rehearse:
        # The parts that a job compiles; a rehearsal has no time for a compiler of C++.
        for part in filter(is_unit, steps.module.modules()):
            part.compile(backend="eager")
    elif compiled:
        compile_module(steps.module, "on", options.device)
    cuda = options.device.type == "cuda"
    if cuda:
        # As a job of this type does.
        set_tf32(dtype == "bf16")
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    began = time.perf_counter()
    loss = steps.take(dtype).item()
    row: Row = {"first_seconds": time.perf_counter() - began, "loss": loss}
    row["seconds"] = seconds_of(lambda: steps.take(dtype), options, 2 if options.rehearse else 10)
    if cuda:
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return row | launches(lambda: steps.take(dtype), cuda)


def launches(work: Callable[[], object], cuda: bool) -> Row:
    """Kernels and copies that ``work`` starts on a device, or operations on the CPU; by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        if cuda:
            torch.cuda.synchronize()
    events = profile.events() or []
    if not cuda:
        return {"operations": sum(event.name.startswith("aten::") for event in events)}
    names = [event.name for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}


def loader(options: Options) -> Iterator[Row]:
    """How fast batches come by themselves, and how long a step in bf16 waits for them."""
    for kind in ("unimodal", "multimodal"):
        steps = Steps(stage_of(kind, options), options)
        count = 3 if options.rehearse else 40
        for beside in (False, True):
            feed = Feed(steps.stage.stream, Shares.of(steps.config.train, ALONE.world), ALONE.world, 0, count + 2)
            try:
                for number in range(count + 2):
                    if number == 2:
                        options.wait()
                        began, waited = time.perf_counter(), feed.waited_seconds
                    steps.batch = feed.next()
                    if beside:
                        steps.take("bf16")
                options.wait()
                seconds = time.perf_counter() - began
                waits = feed.waited_seconds - waited
            finally:
                feed.close()
            row: Row = {"what": f"{kind} {options.size}, batches {'beside a step' if beside else 'alone'}"}
            row["epochs_per_s"] = count * steps.items * steps.stage.epochs_per_item / seconds
            yield row | ({"data_wait": waits / seconds} if beside else {})


def mamba(options: Options) -> Iterator[Row]:
    """Mamba-2 by its fused kernels and as mamba-ssm has it, beside our path of plain products, with the same parameters."""
    more: dict[str, Any] = {}
    try:
        _mamba_ssm_alone()
        from mamba_ssm.modules.mamba2 import Mamba2 as Theirs  # type: ignore[import-not-found]

        # Its shortest path calls a convolution of another package.
        more = {"use_mem_eff_path": importlib.util.find_spec("causal_conv1d") is not None}
    except (ImportError, OSError, RuntimeError) as error:
        yield {"what": "mamba-ssm's layer", "skipped": f"cannot be imported here ({error})"}
        # A rehearsal compares ours with itself, so that the comparison is rehearsed.
        Theirs = own_mamba.Mamba2 if options.rehearse else None
    torch.manual_seed(0)
    width, length = (64, 70) if options.rehearse else (512, 1400)
    sizes: dict[str, Any] = {"d_model": width, "d_state": 16, "d_conv": 4, "expand": 2, "headdim": 64}
    ours = own_mamba.Mamba2(**sizes).to(options.device)
    layers: list[tuple[str, nn.Module]] = [("our layer with the fused scan", ours)]
    if Theirs is not None:
        theirs = Theirs(**sizes, **more).to(options.device)
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        yield {"what": "state dict, both ways", "tensors": len(ours.state_dict())}
        layers.append(("mamba-ssm's layer", theirs))
    u = torch.randn(2, length, width, device=options.device)
    expected = _output_and_gradients(ours, u, fused=False)
    worst = 0.0
    for name, layer in layers:
        if layer is ours and not options.rehearse and own_mamba.fused_scan() is None:
            yield {"what": name, "skipped": "the kernels cannot be imported"}
            continue
        found = _output_and_gradients(layer, u, fused=True)
        far = {key: ((found[key] - value).abs().max() / value.abs().max()).item() for key, value in expected.items()}
        worst = max(worst, *far.values())
        row = {"what": f"{name} beside plain products", "largest_relative_difference": max(far.values()), "by_tensor": far}
        yield row | {"seconds": seconds_of(lambda layer=layer: _output_and_gradients(layer, u, fused=True), options, 3)}
    if not worst < 2e-2:
        raise SystemExit(f"fused and plain paths differ by {worst:.3g} of the largest value")


def _mamba_ssm_alone() -> None:
    """Let parts of mamba-ssm be imported where the whole cannot: its ``__init__`` asks for the compiled extension of Mamba-1 and
    for transformers, and the kernels of Mamba-2, which are Triton's, need neither.
    """
    try:
        importlib.import_module("mamba_ssm")
    except (ImportError, OSError, RuntimeError):
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is not None and spec.submodule_search_locations:
            package = types.ModuleType("mamba_ssm")
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules["mamba_ssm"] = package


def _output_and_gradients(layer: nn.Module, u: Tensor, fused: bool) -> dict[str, Tensor]:
    scan = own_mamba.fused_scan
    if not fused:
        own_mamba.fused_scan = lambda: None  # type: ignore[assignment]
    try:
        layer.zero_grad()
        x = u.clone().requires_grad_()
        out = layer(x)
        out.square().mean().backward()
    finally:
        own_mamba.fused_scan = scan
    assert x.grad is not None
    gradients = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    return {"output": out.detach(), "input": x.grad, **gradients}
