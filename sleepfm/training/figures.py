"""Figures of a step, added up on the device and over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Loss


class Sums:
    """Weighted sums of a loss and its parts over micro-steps, in fp64 on the device."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.values = torch.empty(0)
        """``[len(names)]``, of the figures by name."""

    def add(self, loss: Loss, weight: float) -> None:
        """Every micro-step has the same parts."""
        figures = {"loss": loss.loss, **loss.parts}
        names = tuple(sorted(figures))
        assert self.names in ((), names), f"a loss with the parts {names} after one with {self.names}"
        values = torch.stack([figures[name].detach() for name in names]).double() * weight
        self.values = self.values + values if self.names else values
        self.names = names

    def means(self, world: World) -> dict[str, float]:
        """Means over ranks by name; empty if nothing was added. Waits for the device."""
        if not self.names:
            return {}
        return dict(zip(self.names, mean_over_ranks(self.values, world).tolist(), strict=True))


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """In one collective; ``values`` may be overwritten."""
    if world.size > 1:
        dist.all_reduce(values)
    return values / world.size


def on_device(numbers: list[float], device: torch.device) -> Tensor:
    """``numbers`` in fp64 on ``device``, without waiting for it."""
    cuda = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.float64, pin_memory=cuda).to(device, non_blocking=cuda)
