"""What a training step moves between a GPU and its memory, counted on a few items: the measure of steps that memory limits.

An operation reads its inputs and writes its outputs; views move nothing. Matrix products, convolutions and attention are
*products*, which arithmetic may limit; memory limits all others. What a cache saves, and what an operation needs inside, is not
counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.activations import in_type
from sleepfm.training.tracking.flops import undone
from sleepfm.training.tracking.unfilled import UnfilledProducts, is_product, operation

# Neither kernels nor traffic: they make, name or describe tensors.
FREE = frozenset({"detach", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "device"})
# Two sizes, between which work grows by the item: what does not grow are weights, their copies and their gradients.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class Traffic:
    """A forward and backward pass.

    Attributes:
        flops: of all products.
        product_bytes: that products read and write.
        other_bytes: that all other operations read and write, as eager PyTorch runs them.
    """

    flops: float = 0.0
    product_bytes: float = 0.0
    other_bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.flops + other.flops, self.product_bytes + other.product_bytes, self.other_bytes + other.other_bytes)

    def __mul__(self, factor: float) -> Traffic:
        return Traffic(factor * self.flops, factor * self.product_bytes, factor * self.other_bytes)


@dataclass(frozen=True)
class StepTraffic:
    """Of a micro-step: ``fixed`` whatever the batch, and ``per_item``."""

    fixed: Traffic
    per_item: Traffic

    def of(self, micro_batch: int) -> Traffic:
        """With ``micro_batch`` items on a rank."""
        return self.fixed + self.per_item * micro_batch


class _Counter(UnfilledProducts):
    """Adds up every operation inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Traffic()

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        name = operation(func)
        if moves(func, name):
            moved = moved_bytes(leaf for leaf in (*tree_leaves((args, kwargs)), *tree_leaves(out)) if isinstance(leaf, Tensor))
            formula = flop_registry.get(func.overloadpacket)
            flops = float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0
            self.total += Traffic(flops, moved, 0.0) if is_product(name) else Traffic(flops, 0.0, moved)


def count_traffic(stage: Stage, world: World, dtype: Literal["bf16", "fp32"]) -> StepTraffic:
    """What the passes of ``stage`` move, counted on a few items, then undone. Every rank calls this.

    On the CPU the types are those of its own autocast, which differ from CUDA's in some norms and losses. What a Triton kernel of
    a state-space layer does is not seen.
    """
    few, more = (_counted(stage, world, items, dtype) for items in (_FEW, _MORE))
    per_item = (more + few * -1) * (1 / (_MORE - _FEW))
    return StepTraffic(few + per_item * -_FEW, per_item)


def _counted(stage: Stage, world: World, items: int, dtype: Literal["bf16", "fp32"]) -> Traffic:
    module = stage.module.to(world.device)
    batch = stage.stream.batch(0, items).to(world.device)
    with undone(module, world), _Counter() as counter:
        with in_type(world.device, dtype):
            loss = stage.loss(module, batch, 0).loss
        loss.backward()
    return counter.total


def moves(func: Any, name: str) -> bool:
    """Whether the operation reads and writes memory."""
    return not (func.is_view or name in FREE or name.startswith("profiler::"))


def moved_bytes(tensors: Iterable[Tensor]) -> float:
    """What is read and written; of an expanded tensor what lies in memory."""
    return float(sum(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in tensors))
