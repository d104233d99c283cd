"""Memory that a training step keeps for its backward pass: counted from the graph, or measured where there is a device."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.flops import undone
from sleepfm.training.tracking.unfilled import UnfilledProducts

# Two sizes, between which memory grows by the item: what does not grow are copies of weights in the compute type.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class Activations:
    """Bytes that the backward pass needs: ``fixed`` whatever the batch, and ``per_item``; ``measured`` on a device or counted."""

    fixed: float
    per_item: float
    measured: bool = False

    def bytes(self, micro_batch: int) -> float:
        """With a micro-step of ``micro_batch`` items on a rank."""
        return self.fixed + self.per_item * micro_batch


def count_activations(stage: Stage, world: World, dtype: Literal["bf16", "fp32"]) -> Activations:
    """What autograd keeps of a forward pass, by the memory that it lies in, without parameters and buffers.

    On the CPU the types are those of its own autocast, which differ from CUDA's in some norms and losses. Every rank calls this.
    What a Triton kernel of a state-space layer keeps on CUDA is less than what its equivalent for CPUs does.
    """
    few, more = (_kept_bytes(stage, world, items, dtype) for items in (_FEW, _MORE))
    slope = (more - few) / (_MORE - _FEW)
    return Activations(max(0.0, few - _FEW * slope), slope)


def measure_activations(stage: Stage, world: World, dtype: Literal["bf16", "fp32"], micro_batch: int) -> Activations:
    """The most that a forward and backward pass of ``micro_batch`` items takes on this rank's CUDA device, without gradients.

    Every rank calls this.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    device = world.device
    module = stage.module.to(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with undone(module, world), in_type(device, dtype):
        stage.loss(module, stage.stream.batch(0, micro_batch).to(device), 0).loss.backward()
    gradients = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    peak = torch.cuda.max_memory_allocated(device) - before - gradients
    return Activations(0.0, max(peak, 0) / micro_batch, measured=True)


def _kept_bytes(stage: Stage, world: World, items: int, dtype: Literal["bf16", "fp32"]) -> int:
    module = stage.module.to(world.device)
    batch = stage.stream.batch(0, items).to(world.device)
    others = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    # Held, so that no two of them lie at one address.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in others:
            kept[storage._cdata] = storage
        return tensor

    hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
    with undone(module, world), UnfilledProducts(), in_type(world.device, dtype), hooks:  # type: ignore[no-untyped-call]
        loss = stage.loss(module, batch, 0).loss
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def in_type(device: torch.device, dtype: Literal["bf16", "fp32"]) -> torch.autocast | nullcontext[None]:
    """In which products are of ``dtype``, as in a job."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bf16" else nullcontext()
