"""Passes of a model whose products give zeros: what is counted on them needs shapes and types, and no numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})
ATTENTION = "_scaled_dot_product"


class UnfilledProducts(TorchDispatchMode):
    """Inside, matrix products, convolutions and attention are not computed on a CPU, where they would take nearly all of the
    time; their results are zeros of the right shape and type. All other operations are computed, and so is everything on
    a GPU.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler to protect this mode from it, which takes 2 s in every process (its own
        # FlopCounterMode does). Nothing is compiled inside.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _zeros(func, args, kwargs) if _on_cpu(func, args) else func(*args, **kwargs)
        self.see(func, args, kwargs, out)
        return out

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operation has been called, and ``out`` is its result."""


def operation(func: Any) -> str:
    """The name of a dispatched operation, such as ``addmm``."""
    name: str = func._schema.name
    return name.removeprefix("aten::").removeprefix("prim::")


def is_product(name: str) -> bool:
    """Whether the operation ``name`` is bound by arithmetic, if it is large."""
    return name.rstrip("_") in PRODUCTS or name.startswith(ATTENTION)


def _on_cpu(func: Any, args: Any) -> bool:
    name = operation(func)
    # One that changes its input in place has nothing to return anew.
    return is_product(name) and not name.endswith("_") and args[0].device.type == "cpu"


def _zeros(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    def described(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def filled(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).zero_()

    args, kwargs = tree_map_only(Tensor, described, (args, kwargs))
    return tree_map_only(Tensor, filled, func(*args, **kwargs))
