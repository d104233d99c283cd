"""Arithmetic of a training step, and what share of the hardware's peak it reaches (MFU, Chowdhery et al. 2022, appendix B)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from sleepfm.models.device import native_bf16
from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.devices import known_device
from sleepfm.training.tracking.unfilled import UnfilledProducts

# Of square matrices whose products are measured: at most 0.5 GB each in fp32. Twenty milliseconds are a thousand launches.
_SIDES = (512, 1024, 2048, 4096, 8192)
_TRIES = 4
_LONG_ENOUGH_S = 0.02


class _Counter(UnfilledProducts):
    """Adds up torch's own formulas over every operation."""

    total = 0

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)


def item_flops(stage: Stage, world: World) -> float:
    """FLOP of the forward and backward pass of one item of ``stage``: matrix products, convolutions and attention, a
    multiplication and an addition counting two.

    Computed on two items, then undone: weights, batch statistics and random numbers are as before. Every rank calls this, since
    a loss may compare items of all ranks. What a Triton kernel of a state-space layer does is not seen.
    """
    module = stage.module.to(world.device)
    with undone(module, world), _Counter() as counter:  # type: ignore[no-untyped-call]
        batch = stage.stream.batch(0, 2).to(world.device)
        stage.loss(module, batch, 0).loss.backward()
    return counter.total / 2


@contextmanager
def undone(module: nn.Module, world: World) -> Iterator[None]:
    """Trains inside; afterwards batch statistics, random numbers, gradients and the mode are as before."""
    training = module.training
    module.train()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
            yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        module.zero_grad(set_to_none=True)
        module.train(training)


def peak_flops(device: torch.device, dtype: Literal["bf16", "fp32"]) -> tuple[float, str]:
    """FLOP/s that ``device`` can do at most, and where the figure is from: its data sheet, or a measured matrix product."""
    if device.type == "cuda":
        known = known_device(torch.cuda.get_device_name(device))
        stated = 0.0 if known is None else known.bf16 if dtype == "bf16" else known.fp32
        if known is not None and stated:
            return stated, f"data sheet of {known.name}"
    # Where bf16 products go through the fp32 kernels, those set the limit.
    kind = torch.bfloat16 if dtype == "bf16" and native_bf16(device) else torch.float32
    return _measured(device, kind), f"measured {str(kind).removeprefix('torch.')} matrix product"


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some matrix products, with the threads that this process has.

    Products grow until one takes long enough to keep every unit of ``device`` busy and to hide its launch: a fast device is
    measured on a large one.
    """
    fastest = 0.0
    for side in _SIDES:
        a = torch.randn(side, side, device=device).to(dtype)
        taken = min(_seconds(a) for _ in range(_TRIES))
        fastest = max(fastest, 2 * side**3 / taken)
        if taken > _LONG_ENOUGH_S:
            break
    return fastest


def _seconds(a: Tensor) -> float:
    began = time.perf_counter()
    # The copy of a number waits for a device.
    (a @ a)[0, 0].item()
    return time.perf_counter() - began
