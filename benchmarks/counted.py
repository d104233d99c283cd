"""Counts what a training step asks of a GPU, without one: operations, arithmetic and bytes, on tensors that hold no numbers.

It counts as sleepfm/training/tracking/traffic.py does, operation by operation. The bytes of operations that are no products are
the step's logical traffic outside products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sleepfm.training.tracking.traffic import moved_bytes, moves
from sleepfm.training.tracking.unfilled import is_product, operation

# Tensors that a launch of torch's fused optimiser takes at most, and chunks of 65,536 numbers (MultiTensorApply.cuh).
_OPTIMISER_TENSORS, _OPTIMISER_CHUNKS, _CHUNK = 36, 320, 65_536


@dataclass(frozen=True)
class Kernel:
    """One operation on the device: what it reads and writes, and the arithmetic of a product (0 for others)."""

    name: str
    bytes: float
    flops: float = 0.0
    product: bool = False
    launches: int = 1


@dataclass
class Step:
    """The kernels of a step, in order."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def flops(self) -> float:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def product_bytes(self) -> float:
        return sum(kernel.bytes for kernel in self.kernels if kernel.product)

    @property
    def other_bytes(self) -> float:
        """The logical traffic outside products."""
        return sum(kernel.bytes for kernel in self.kernels if not kernel.product)

    def largest(self, count: int) -> dict[str, float]:
        """Bytes outside products of the operations that move the most."""
        sums: Counter[str] = Counter()
        for kernel in self.kernels:
            if not kernel.product:
                sums[kernel.name] += round(kernel.bytes)
        return dict(sums.most_common(count))


class Counting(TorchDispatchMode):
    """Appends to ``step`` every operation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Step()
        self._only_products = False

    @contextmanager
    def products_of(self, others: Iterable[Kernel]) -> Iterator[None]:
        """Within the block only products are counted as they come; the ``others`` that stand for the rest are added."""
        before, self._only_products = self._only_products, True
        try:
            yield
        finally:
            self._only_products = before
        self.step.kernels.extend(others)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing within the block is counted."""
        kernels, self.step.kernels = self.step.kernels, []
        try:
            yield
        finally:
            self.step.kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation(func)
        product = is_product(name)
        if not moves(func, name) or (self._only_products and not product):
            return out
        tensors = [leaf for leaf in (*tree_leaves((args, kwargs)), *tree_leaves(out)) if isinstance(leaf, Tensor)]
        formula = flop_registry.get(func.overloadpacket)
        flops = float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0
        self.step.kernels.append(Kernel(name, moved_bytes(tensors), flops, product, _launches(name, args, kwargs)))
        return out


def _launches(name: str, args: Any, kwargs: dict[str, Any]) -> int:
    if name == "convolution_backward":
        # The gradients of input and weight.
        return sum(args[10] if len(args) > 10 else kwargs["output_mask"])
    if name == "_fused_adamw_":
        chunks = sum(-(-tensor.numel() // _CHUNK) for tensor in args[0])
        return max(-(-len(args[0]) // _OPTIMISER_TENSORS), -(-chunks // _OPTIMISER_CHUNKS))
    return 1
