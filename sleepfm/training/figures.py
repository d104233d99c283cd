"""Figures of a step, added up on the device and over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Loss

# Of a source of a mixture: the sum of the losses of its items, and how many they are, both over all items.
_LOSS, _SHARE = "loss/", "share/"


class Sums:
    """Weighted sums of a loss and its parts over micro-steps, in fp64 on the device; in a mixture also by source."""

    def __init__(self, sources: Sequence[str] = ()) -> None:
        """``sources`` are the names of those of a mixture, by the number that items have of them."""
        self._sources = tuple(sources)
        self.names: tuple[str, ...] = ()
        self.values = torch.empty(0)
        """``[len(names)]``, of the figures by name."""

    def add(self, loss: Loss, weight: float, source: Tensor | None = None) -> None:
        """Every micro-step has the same parts. ``source`` ``[B]`` is the number of each item's source."""
        figures = {"loss": loss.loss, **loss.parts}
        names = tuple(sorted(figures))
        values = torch.stack([figures[name].detach() for name in names]).double()
        if self._sources and source is not None and loss.items is not None:
            names += tuple(f"{kind}{name}" for kind in (_LOSS, _SHARE) for name in self._sources)
            values = torch.cat([values, self._by_source(loss.items, source)])
        assert self.names in ((), names), f"a loss with the parts {names} after one with {self.names}"
        values = values * weight
        self.values = self.values + values if self.names else values
        self.names = names

    def _by_source(self, items: Tensor, source: Tensor) -> Tensor:
        """``[2 S]``: of every source the sum of its items' losses, and then their number, relative to all items.

        By a mask, since the host does not know how many they are, and a loss that is not finite is to stay with its source.
        """
        own = source[:, None] == torch.arange(len(self._sources), device=source.device)  # [B, S]
        return torch.cat([torch.where(own, items.double()[:, None], 0.0).mean(0), own.double().mean(0)])

    def means(self, world: World) -> dict[str, float]:
        """Means over ranks by name; empty if nothing was added. Waits for the device."""
        if not self.names:
            return {}
        return by_source(dict(zip(self.names, mean_over_ranks(self.values, world).tolist(), strict=True)))


def by_source(means: Mapping[str, float]) -> dict[str, float]:
    """Figures of a step from their means over ranks: the loss of each source is that of its own items, and absent without any."""
    figures = {name: value for name, value in means.items() if not name.startswith((_LOSS, _SHARE))}
    for name, value in means.items():
        source = name.removeprefix(_LOSS)
        if source != name and means[f"{_SHARE}{source}"] > 0:
            figures[name] = value / means[f"{_SHARE}{source}"]
    return figures


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """In one collective; ``values`` may be overwritten."""
    if world.size > 1:
        dist.all_reduce(values)
    return values / world.size


def on_device(numbers: list[float], device: torch.device) -> Tensor:
    """``numbers`` in fp64 on ``device``, without waiting for it."""
    cuda = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.float64, pin_memory=cuda).to(device, non_blocking=cuda)
