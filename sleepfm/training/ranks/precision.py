"""Which devices multiply in bf16, and bf16 arithmetic on processors without bf16 instructions.

On these the native bf16 kernels of the CPU are five to fifteen times slower than fp32 ones. A product of bf16 operands
accumulated in fp32 is the same number whichever unit forms it, so the operands are rounded to bf16, multiplied by the
fp32 kernel, and the result is rounded to bf16: what hardware with bf16 does, up to the order of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sleepfm.models.device import native_bf16

# The products that autocast computes in bf16 on CPUs and that our models call.
PRODUCTS = frozenset(
    {
        functional.linear,
        functional.conv1d,
        functional.conv2d,
        functional.scaled_dot_product_attention,
        torch.conv1d,
        torch.conv2d,
        torch.matmul,
        torch.bmm,
        torch.einsum,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
    }
)


def bf16_products(device: torch.device | str) -> AbstractContextManager[Any]:
    """What to run an autocast forward pass under on ``device``: :class:`RoundedProducts` on a CPU without bf16, else nothing."""
    return RoundedProducts() if torch.device(device).type == "cpu" and not native_bf16(device) else nullcontext()


@contextmanager
def autocast(device: torch.device, dtype: str) -> Iterator[None]:
    """The arithmetic of a forward pass in ``dtype`` (``fp32`` or ``bf16``) outside of DeepSpeed's engine, as inside of it."""
    if dtype != "bf16":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16), bf16_products(device):
        yield


class RoundedProducts(TorchFunctionMode):
    """Inside an autocast region of the CPU, forms :data:`PRODUCTS` from operands rounded to bf16 with fp32 kernels.

    Gradients pass through the same roundings, so they too are products of bf16 numbers.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            out = func(*map(_rounded, args), **{key: _rounded(value) for key, value in kwargs.items()})
            return out.bfloat16()


def _rounded(value: Any) -> Any:
    """``value`` with every floating tensor at bf16's precision, in fp32."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.bfloat16().float()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_rounded, value))
    return value
