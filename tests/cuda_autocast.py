"""CUDA's autocast on CPU tensors: every operation gets the types that it would get on a CUDA device.

The CPU's autocast casts other operations than CUDA's: it widens ``linalg.*``, FFT and quantiles, which CUDA leaves in bf16
and has no kernels for. Within :func:`cuda_autocast` the CPU's rules are replaced by CUDA's, whose list is the dispatcher's
own, and :class:`CudaKernels` refuses an operation that has no kernel in CUDA for the type it is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# What CUDA's autocast computes in bf16, in the widest type of the operands, and refuses; the rest of its list is computed in
# fp32 (PyTorch's documentation of torch.amp, "CUDA Ops that can autocast").
LOWER = {
    "_convolution",
    "_scaled_dot_product_flash_attention",
    "_thnn_fused_gru_cell",
    "_thnn_fused_lstm_cell",
    "addbmm",
    "addmm",
    "addmv",
    "addr",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "cudnn_convolution",
    "cudnn_convolution_transpose",
    "einsum",
    "gru_cell",
    "linalg_multi_dot",
    "linalg_vecdot",
    "linear",
    "lstm_cell",
    "matmul",
    "mm",
    "mv",
    "prelu",
    "rnn_relu_cell",
    "rnn_tanh_cell",
    "scaled_dot_product_attention",
}
PROMOTED = {
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "grid_sampler",
    "index_put",
    "scatter_add",
    "tensordot",
    "vdot",
}
REFUSED = {"binary_cross_entropy"}
_HALF = (torch.bfloat16, torch.float16)
# Families of operations without a kernel for half precision: decompositions and eigenvalues (cuSOLVER), FFT (cuFFT), distances,
# and what AT_DISPATCH_FLOATING_TYPES alone covers (aten/src/ATen/native/cuda).
_NO_HALF = (
    "linalg_",
    "_linalg_",
    "_fft_",
    "_pdist_",
    "_cdist_",
    "cholesky",
    "geqrf",
    "orgqr",
    "ormqr",
    "lu_unpack",
    "triangular_solve",
    "_ctc_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "histc",
)
_HALF_ALL_THE_SAME = ("linalg_vector_norm", "linalg_vecdot")


class NoCudaKernel(AssertionError):
    """An operation got a type for which CUDA has no kernel."""


class CudaKernels(TorchDispatchMode):
    """Refuses operations that CUDA cannot compute in the type they get, forward and backward."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        if name.startswith(_NO_HALF) and not name.startswith(_HALF_ALL_THE_SAME):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and tensor.dtype in _HALF:
                    raise NoCudaKernel(f"{name} gets {tensor.dtype}, for which CUDA has no kernel")
        return func(*args, **kwargs)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Autocast to bf16 on the CPU by CUDA's rules, and :class:`CudaKernels` below it."""
    with warnings.catch_warnings():
        # That a kernel is overridden, and that autograd passes through what is below autocast.
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL")
        cuda, cpu = (set(torch._C._dispatch_get_registrations_for_dispatch_key(f"Autocast{name}")) for name in ("CUDA", "CPU"))
        for name in cuda:
            library.impl(name, _kernel(name), "AutocastCPU", allow_override=True)
        for name in cpu - cuda:
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU", allow_override=True)
    try:
        with torch.autocast("cpu", torch.bfloat16), CudaKernels():  # type: ignore[no-untyped-call]
            yield
    finally:
        library._destroy()


def _kernel(name: str) -> Callable[..., Any]:
    short, _, overload = name.removeprefix("aten::").partition(".")
    operation = getattr(getattr(torch.ops.aten, short), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if short in REFUSED:
            raise NoCudaKernel(f"{short} is refused under CUDA's autocast; use the form with logits")
        with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
            cast = _rule(short, args, kwargs)
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _rule(name: str, args: Any, kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """What becomes of each operand: floating tensors of at most 32 bits take the type that the operation is computed in."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    target = torch.float32
    if name in LOWER or (name in PROMOTED and all(tensor.dtype in _HALF for tensor in tensors)):
        target = torch.bfloat16

    def cast(value: Any) -> Any:
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(target) if eligible else value

    return cast
