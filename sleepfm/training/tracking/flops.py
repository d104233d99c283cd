"""Arithmetic of a training step, and what share of the hardware's peak it reaches (MFU, Chowdhery et al. 2022, appendix B)."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.precision import native_bf16
from sleepfm.training.stage import Stage

# Dense peak of one device in FLOP/s, without sparsity, as the makers' data sheets state it: (bf16, fp32 as torch computes it by
# default, that is without TF32).
_PEAKS = {
    "H200": (989e12, 67e12),  # nvidia.com/en-us/data-center/h200
    "H100 PCIe": (756e12, 51e12),  # nvidia.com/en-us/data-center/h100
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),  # nvidia.com/en-us/data-center/a100
    "L40S": (362e12, 91.6e12),  # nvidia.com/en-us/data-center/l40s
    "A10": (125e12, 31.2e12),  # nvidia.com/en-us/data-center/products/a10-gpu
    "V100": (0.0, 15.7e12),  # nvidia.com/en-us/data-center/v100; has no bf16
}


class _Counter(TorchDispatchMode):
    """Adds up torch's own formulas over every operation."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler to protect this mode from it, which takes 2 s in every process (its own
        # FlopCounterMode does). Nothing is compiled inside.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def item_flops(stage: Stage, world: World) -> float:
    """FLOP of the forward and backward pass of one item of ``stage``: matrix products, convolutions and attention, a
    multiplication and an addition counting two.

    Computed on two items, then undone: weights, batch statistics and random numbers are as before. Every rank calls this, since
    a loss may compare items of all ranks. What a Triton kernel of a state-space layer does is not seen.
    """
    module = stage.module.to(world.device)
    training = module.training
    module.train()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _Counter() as counter:  # type: ignore[no-untyped-call]
        batch = stage.stream.batch(0, 2).to(world.device)
        stage.loss(module, batch, 0).loss.backward()
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    module.zero_grad(set_to_none=True)
    module.train(training)
    return counter.total / 2


def peak_flops(device: torch.device, dtype: Literal["bf16", "fp32"]) -> tuple[float, str]:
    """FLOP/s that ``device`` can do at most, and where the figure is from: its data sheet, or a measured matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bf16, fp32) in _PEAKS.items():
            if all(word in name for word in known.split()) and (bf16 if dtype == "bf16" else fp32):
                return (bf16 if dtype == "bf16" else fp32), f"data sheet of {known}"
    # Where bf16 products go through the fp32 kernels, those set the limit.
    kind = torch.bfloat16 if dtype == "bf16" and native_bf16(device) else torch.float32
    return _measured(device, kind), f"measured {str(kind).removeprefix('torch.')} matrix product"


def _measured(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """The fastest of some matrix products, with the threads that this process has."""
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
