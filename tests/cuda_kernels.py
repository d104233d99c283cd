"""What CUDA's autocast makes of the types of operations, and which operations CUDA lacks in the type that they get."""

from __future__ import annotations

import torch
from torch import Tensor

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
HALF = (torch.bfloat16, torch.float16)

# Beginnings of the names of operations that CUDA has for fp32 and not for bf16, and names of those that it has not at all or
# not for integers: what `torch.testing._internal.common_methods_invocations.op_db` of torch 2.13 states of its operations
# (``supported_dtypes("cuda")`` beside those of the CPU), each of which PyTorch's own tests run on CUDA.
_NO_HALF = (
    *("linalg_", "_linalg_", "cholesky", "_cholesky", "geqrf", "orgqr", "ormqr", "lu_unpack", "triangular_solve"),
    *("_fft_", "_pdist_", "_cdist_", "_ctc_loss", "histc", "igamma", "angle", "complex", "polar", "view_as_complex"),
    *("special_airy", "special_bessel", "special_modified_bessel", "special_scaled_modified_bessel", "special_spherical_bessel"),
    *("special_chebyshev", "special_shifted_chebyshev", "special_hermite", "special_laguerre", "special_legendre"),
    *("special_erfcx", "special_log_ndtr", "special_ndtri", "special_zeta"),
)
_HALF_ALL_THE_SAME = ("linalg_vector_norm", "linalg_vecdot", "linalg_cross")
_HOST_ONLY = ("histogram", "_histogramdd")
_NO_INTEGERS = {"addbmm", "addmm", "addmv", "baddbmm", "bmm", "convolution", "dot", "mm", "mv", "vdot", "avg_pool2d"}


class NoCudaKernel(AssertionError):
    """CUDA would refuse the operation."""


def refusal(name: str, tensors: list[Tensor]) -> str | None:
    """Why CUDA has no kernel of the operation ``name`` (of ``aten``) for ``tensors``; None where it has one."""
    kinds = {tensor.dtype for tensor in tensors}
    half = [kind for kind in HALF if kind in kinds]
    if half and name.startswith(_NO_HALF) and not name.startswith(_HALF_ALL_THE_SAME):
        return f"{name} gets {half[0]}, for which CUDA has no kernel"
    if name.startswith(_HOST_ONLY):
        return f"{name} has no CUDA kernel"
    if name in _NO_INTEGERS and any(not (kind.is_floating_point or kind.is_complex) for kind in kinds):
        return f"{name} gets integers, for which CUDA has no kernel"
    return None
