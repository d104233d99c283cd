"""Weights of a module in training: digest, a copy on the CPU, and batch statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sleepfm.training.ranks.distributed import World


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names and bytes of every parameter and buffer."""
    return tensors_digest(module.state_dict().items())


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def whole_state(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Every parameter and buffer on the CPU of rank 0; elsewhere empty."""
    return {name: value.detach().cpu() for name, value in module.state_dict().items()} if world.is_main else {}


@torch.no_grad()
def share_state(module: nn.Module, world: World) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world.size > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, src=0)


def named_running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Running means and variances of the batch norms that are being trained."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.training
        for name, buffer in (("running_mean", part.running_mean), ("running_var", part.running_var))
        if buffer is not None
    }


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The values of :func:`named_running_statistics`."""
    return list(named_running_statistics(module).values())


def average_statistics(module: nn.Module, world: World) -> None:
    """Give every rank the mean of all ranks' running statistics, so that none of them is special.

    Running statistics do not enter a training step, and their update is linear, so this may happen at any
    step without a change to the losses.
    """
    average(running_statistics(module), world)


def average(buffers: list[Tensor], world: World) -> None:
    """Replace ``buffers`` by their means over ranks. The sum is taken in fp64: equal values stay bit-equal."""
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1).double() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world.size
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


class StatisticsGuard:
    """Puts running statistics back to where they were before a step that was skipped."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = running_statistics(module)
        self._kept: Tensor | None = None

    def keep(self) -> None:
        """Before a step."""
        self._kept = self._joined()

    @torch.no_grad()
    def restore(self, skipped: Tensor) -> None:
        """After it; only if the flag ``skipped`` on their device says so."""
        joined = self._joined()
        if joined is not None and self._kept is not None:
            after = torch.where(skipped, self._kept, joined).split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [part.view_as(buffer) for part, buffer in zip(after, self._buffers, strict=True)])

    def _joined(self) -> Tensor | None:
        return torch.cat([buffer.reshape(-1) for buffer in self._buffers]) if self._buffers else None
