"""Which device models run on, and in which precision they give the same numbers there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sleepfm.errors import ConfigError, UsageError


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
