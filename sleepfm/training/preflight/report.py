"""What ``--dry-run`` says of a job: steps, arithmetic, memory of a rank, and the hours that it takes on named GPUs."""

from __future__ import annotations

import torch

from sleepfm.data.identity import as_digest
from sleepfm.data.mixed_stream import MixedStream, sources_of
from sleepfm.models.recompute import recompute_activations
from sleepfm.training.engine import total_steps
from sleepfm.training.feed import Shares
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.activations import Activations, count_activations, measure_activations
from sleepfm.training.tracking.devices import NAMED
from sleepfm.training.tracking.flops import item_flops
from sleepfm.training.tracking.sizing import Size
from sleepfm.training.tracking.step_time import SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, Work, step_seconds, work_of
from sleepfm.training.tracking.traffic import count_traffic
from sleepfm.training.zero import bucket_bytes, trained_sizes

# Assumed for CUDA's own context, NCCL's buffers and what the allocator cannot use.
_CUDA_BYTES = 2 * 2**30
_GIB = 2**30


def describe(config: RunConfig, stage: Stage, world: World, planned: World) -> str:
    """Lines for a person; every rank calls this. Sizes are those of ``planned`` processes, whatever runs now."""
    train, zero = config.train, config.deepspeed.zero
    shares = Shares.of(train, planned)
    flops = item_flops(stage, world)
    if train.recompute:
        recompute_activations(stage.module)
    activations = _activations(config, stage, world, shares.micro_batch)
    traffic = count_traffic(stage, world, config.deepspeed.compute_dtype)
    size, steps = Size.of(stage.module), total_steps(config, stage)
    parts = {
        "parameters, gradients and optimiser state": size.bytes_per_rank(zero, planned.size, train.ema > 0),
        "DeepSpeed's buffers for gradients": bucket_bytes(config.deepspeed, trained_sizes(stage.module)),
        f"activations of {shares.micro_batch} items ({'measured' if activations.measured else 'counted'})": activations.bytes(
            shares.micro_batch
        ),
        "assumed for CUDA and NCCL": _CUDA_BYTES,
    }
    needed = sum(parts.values())
    work = work_of(config, planned.size, traffic, size.trainable)
    return "\n".join(
        [
            f"steps: {steps}, items in a pass: {len(stage.stream)}",
            *_sources(stage),
            f"processes: {planned.size}, of {shares.micro_batch} items in each of {shares.accumulation} micro-steps",
            f"arithmetic: {flops / 1e9:.2f} GFLOP an item, {flops * train.global_batch / 1e12:.3f} TFLOP a step",
            f"memory traffic: {traffic.per_item.product_bytes / 1e6:.0f} MB an item in products, "
            f"{traffic.per_item.other_bytes / 1e6:.0f} MB in all else (not compiled)",
            size.describe(planned.size, train.ema > 0),
            f"disk: {size.bytes_written(zero, train.keep, train.ema > 0) / 1e9:.2f} GB in {train.output}",
            f"memory of a rank on a GPU at ZeRO {zero}: {needed / _GIB:.2f} GiB",
            *(f"  {count / _GIB:.2f} GiB {name}" for name, count in parts.items()),
            *_on_devices(work, planned.size, steps, needed, config.deepspeed.compute_dtype),
        ]
    )


def _sources(stage: Stage) -> list[str]:
    """Every data set that the stage learns from, with its share of a mixture, and what of it is validated."""
    data, stream = as_digest(stage.dataset_digest), stage.stream
    counts = dict(zip(stream.names, stream.counts, strict=True)) if isinstance(stream, MixedStream) else {}
    validated = sources_of(getattr(stage, "validation", None))
    lines = []
    for part in data.parts:
        if not part.path:
            continue
        line = f"data: {part.name} ({part.path}), data set {part.digest[:12]}"
        if part.name in counts:
            given = counts[part.name]
            line += f", {given} of {len(stream)} items a pass ({given / len(stream):.1%})"
        if validated and part.name not in validated:
            line += ", nothing to validate on"
        lines.append(line)
    return lines


def _activations(config: RunConfig, stage: Stage, world: World, micro_batch: int) -> Activations:
    if world.device.type != "cuda":
        return count_activations(stage, world, config.deepspeed.compute_dtype)
    try:
        return measure_activations(stage, world, config.deepspeed.compute_dtype, micro_batch)
    except torch.OutOfMemoryError:
        stage.module.zero_grad(set_to_none=True)
        return count_activations(stage, world, config.deepspeed.compute_dtype)


def _on_devices(work: Work, processes: int, steps: int, needed: float, dtype: str) -> list[str]:
    lines = []
    for device in NAMED:
        fits = "fits" if needed <= device.memory else "does not fit"
        line = f"{processes} x {device.name} ({device.memory / _GIB:.0f} GiB): {fits}"
        if dtype == "bf16":
            step = step_seconds(work, processes, device)
            launched = step["launching"] >= step["computing"] + step["moving"]
            slowest = "launches" if launched else "arithmetic" if step["computing"] > step["moving"] else "memory"
            line += f", {steps * step['step'] / 3600:.2f} h expected ({1000 * step['step']:.1f} ms a step, set by {slowest})"
        lines.append(line)
    if dtype == "bf16":
        lines.append(
            f"  at {SHARE_OF_PEAK:.0%} of the data sheets' peak and {SHARE_OF_BANDWIDTH:.0%} of their bandwidth, assumed; "
            "without validations, saves, waiting for data and faults"
        )
    return lines
