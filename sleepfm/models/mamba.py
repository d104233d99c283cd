"""Mamba-2 (arXiv 2405.21060): the scan by fused kernels on CUDA tensors, by an equal PyTorch path elsewhere.

The recurrence of one head is ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t`` and ``y_t = C_t h_t + D x_t``. State-space duality cuts
the sequence into chunks: inside a chunk it is a masked matrix product, between chunks only the state is carried. Time and
memory are linear in length. Parameter names, shapes and initialisation are those of ``mamba_ssm.Mamba2``, so that a state
dict moves either way. Which path is taken is decided by the tensor's device at every call: a model on the CPU of a machine
with a GPU meets no CUDA kernel.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.errors import ModelError

CHUNK = 64
# The chunk that mamba-ssm's kernels are tuned for.
FUSED_CHUNK = 256


@lru_cache(1)
def fused_scan() -> Callable[..., Any] | None:
    """``mamba_chunk_scan_combined`` of mamba-ssm's Triton kernels, or None where the package is not installed or cannot be
    imported (its compiled extension fits one build of torch); the latter with one warning.
    """
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ModuleNotFoundError as error:
        if error.name == "mamba_ssm":
            return None
        failure: Exception = error
    except (ImportError, OSError, RuntimeError) as error:
        failure = error
    else:
        return mamba_chunk_scan_combined
    warnings.warn(
        f"mamba_ssm is installed but cannot be imported ({failure}); Mamba's slower PyTorch path is used. Reinstall it for "
        "this build of torch: pip install --no-build-isolation --force-reinstall '.[cuda]'",
        stacklevel=2,
    )
    return None


class RMSNormGated(nn.Module):
    """``rms_norm(x * silu(z)) * weight`` over the last dimension, as Mamba-2 gates its output."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """``x``, ``z`` ``[..., size]``; computed in fp32."""
        return F.rms_norm(x.float() * F.silu(z.float()), self.weight.shape, self.weight, self.eps)


class Mamba2(nn.Module):
    """A causal layer on ``[B, L, d_model]`` with the parameters of ``mamba_ssm.Mamba2`` (one group, gated RMS norm, no projection
    bias).

    ``A_log``, ``D``, ``dt_bias`` and the scan stay in fp32 under autocast: the recurrence multiplies many factors near one,
    which bf16 cannot hold apart.

    Raises:
        ModelError: ``d_model * expand`` is not a multiple of ``headdim``.
    """

    def __init__(self, d_model: int, d_state: int = 128, d_conv: int = 4, expand: int = 2, headdim: int = 64) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.headdim = d_model * expand, d_state, headdim
        if self.d_inner % headdim:
            raise ModelError(f"Mamba-2: d_model x expand = {self.d_inner} is not a multiple of headdim {headdim}")
        self.heads = self.d_inner // headdim
        conv_size = self.d_inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_size + self.heads, bias=False)
        self.conv1d = nn.Conv1d(conv_size, conv_size, d_conv, groups=conv_size, padding=d_conv - 1)
        # dt log-uniform in [1e-3, 1e-1]; the bias is its inverse under softplus.
        dt = torch.exp(torch.rand(self.heads) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNormGated(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """``u`` ``[B, L, d_model]``; output ``t`` depends on inputs up to ``t`` only."""
        length = u.shape[1]
        z, xbc, dt = self.in_proj(u).split([self.d_inner, self.d_inner + 2 * self.d_state, self.heads], dim=-1)
        xbc = F.silu(self.conv1d(xbc.transpose(1, 2))[..., :length].transpose(1, 2)).float()
        x, b, c = xbc.split([self.d_inner, self.d_state, self.d_state], dim=-1)
        with torch.autocast(u.device.type, enabled=False):
            heads = x.reshape(*x.shape[:-1], self.heads, self.headdim)
            step = F.softplus(dt.float() + self.dt_bias)
            rate = -self.A_log.exp()
            fused = fused_scan() if u.is_cuda else None
            if fused is None:
                y = state_space_duality(heads, step, rate, b, c)
            else:
                y = fused(heads, step, rate, b[:, :, None], c[:, :, None], FUSED_CHUNK)
            y = y + self.D[:, None] * heads
            gated = self.norm(y.flatten(-2), z)
        return self.out_proj(gated)


def state_space_duality(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK) -> Tensor:
    """The scan ``h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t``, ``y_t = c_t h_t``, ``h_0 = 0``, by chunks.

    Args:
        x: ``[B, L, H, P]``. dt: ``[B, L, H]``, positive. a: ``[H]``, negative. b, c: ``[B, L, N]``, shared by the heads.

    Returns:
        y: ``[B, L, H, P]``.
    """
    batch, length, heads, size = x.shape
    x, dt, b, c = _chunks(x, chunk), _chunks(dt, chunk), _chunks(b, chunk), _chunks(c, chunk)  # [B, K, S, ...]
    driven = x * dt[..., None]  # [B, K, S, H, P]
    decay = torch.cumsum(dt * a, dim=2)  # [B, K, S, H], log of the decay since the chunk's start

    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    between = decay[:, :, :, None] - decay[:, :, None]  # [B, K, S, S, H]
    weight = between.masked_fill(later[..., None], -torch.inf).exp()
    scores = torch.einsum("bksn,bktn->bkst", c, b)
    inside = torch.einsum("bksth,bkthp->bkshp", scores[..., None] * weight, driven)

    to_end = (decay[:, :, -1:] - decay).exp()
    gained = torch.einsum("bktn,bkth,bkthp->bkhpn", b, to_end, driven)  # state each chunk adds
    kept = decay[:, :, -1].exp()  # [B, K, H]
    state = x.new_zeros(batch, heads, size, b.shape[-1])
    carried = []
    for index in range(x.shape[1]):
        carried.append(state)
        state = kept[:, index, :, None, None] * state + gained[:, index]
    across = torch.einsum("bksn,bksh,bkhpn->bkshp", c, decay.exp(), torch.stack(carried, 1))
    return (inside + across).flatten(1, 2)[:, :length]


def _chunks(v: Tensor, chunk: int) -> Tensor:
    """``[B, L, ...]`` as ``[B, K, chunk, ...]``. Zero inputs after the end change nothing before it."""
    padded = F.pad(v, (0, 0) * (v.dim() - 2) + (0, -v.shape[1] % chunk))
    # Not `unflatten`, which the compiler does not see through while products are rounded (RoundedProducts).
    return padded.reshape(v.shape[0], -1, chunk, *v.shape[2:])
