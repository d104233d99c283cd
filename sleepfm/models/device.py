"""Which device models run on, and in which precision they give the same numbers there."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from sleepfm.errors import ConfigError, UsageError

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Encoders with fewer parameters take seconds for a night; in fp32 they then give the same on every processor.
_LARGE = 20_000_000
_X86 = ("x86_64", "AMD64")


def accelerator() -> str:
    """``cuda`` or ``cpu``: what ``DS_ACCELERATOR`` says, else whether there is a CUDA device.

    Raises:
        ConfigError: another accelerator, or CUDA where there is none.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    asked = os.environ.get("DS_ACCELERATOR") or found
    if asked not in ("cuda", "cpu"):
        raise ConfigError(f"environment variable DS_ACCELERATOR={asked!r}: this project runs on cuda and cpu")
    if asked == "cuda" and found != "cuda":
        raise ConfigError("environment variable DS_ACCELERATOR='cuda', but torch finds no CUDA device; unset it or set it to cpu")
    return asked


def choose_device(asked: str) -> torch.device:
    """The device that ``--device`` names: ``cpu``, ``cuda``, or ``auto``, which is :func:`accelerator`'s.

    Raises:
        UsageError: ``cuda`` where torch finds no CUDA device.
        ConfigError: see :func:`accelerator`.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; take --device cpu or auto")
    return torch.device(accelerator() if asked == "auto" else asked)


def set_tf32(allowed: bool) -> None:
    """Whether CUDA may compute products and convolutions of fp32 tensors in TF32, with its 10 bits, from now on in this process.

    By default torch does so in convolutions alone.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it products and convolutions of fp32 tensors are computed in fp32, and not in TF32: a model then gives on a GPU what
    it gives on a CPU.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def native_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies in bf16 itself: a GPU of Ampere or later, or a CPU with AVX512-BF16, AMX or ARM's BF16."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN says so of every x86 processor with AVX-512, and emulates the products of those without the instructions.
    return platform.machine() not in _X86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_precision(asked: Precision, module: nn.Module) -> Precision:
    """``asked``, where ``auto`` is bf16 for a large ``module`` on a CPU that multiplies in it, and fp32 otherwise: a GPU is fast
    enough in fp32.
    """
    if asked != "auto":
        return asked
    device = next(module.parameters()).device
    is_large = sum(parameter.numel() for parameter in module.parameters()) >= _LARGE
    return "bf16" if device.type == "cpu" and is_large and native_bf16(device) else "fp32"


def products_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within it products and convolutions on ``device`` are formed in bf16 and summed in fp32, if ``precision`` is bf16."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
