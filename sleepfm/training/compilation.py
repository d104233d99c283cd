"""Whether a run compiles its model, and where it can."""

from __future__ import annotations

import os
import shutil
import warnings
from typing import Literal

import torch
from torch import nn

from sleepfm.errors import ConfigError
from sleepfm.models.recompute import compile_units
from sleepfm.training.ranks.batch_norm import SynchronisedBatchNorm

Compile = Literal["auto", "on", "off"]


def compile_module(module: nn.Module, asked: Compile, device: torch.device) -> int:
    """Have the units of ``module`` compiled as ``train.compile`` asks: ``auto`` is on CUDA, where the compiler can work.

    Units that exchange statistics with other ranks stay as they are: collectives are not compiled.

    Returns:
        How many units there are; 0 where nothing is compiled.

    Raises:
        ConfigError: ``on`` where the compiler cannot work.
    """
    if asked == "off" or (asked == "auto" and device.type != "cuda"):
        return 0
    missing = lacking(device)
    if missing and asked == "on":
        raise ConfigError(f"train.compile: on, but {missing}; install it, or set train.compile=off")
    if missing:
        warnings.warn(
            f"the model is not compiled and therefore slower: {missing}; install it, or set train.compile=off", stacklevel=2
        )
        return 0
    return compile_units(module, lambda unit: not any(isinstance(part, SynchronisedBatchNorm) for part in unit.modules()))


def lacking(device: torch.device) -> str:
    """What the compiler needs on ``device`` and does not find, or nothing. Triton builds its launchers with a C compiler."""
    compilers = ("cc", "gcc", "clang") if device.type == "cuda" else ("g++", "clang++")
    variable = "CC" if device.type == "cuda" else "CXX"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "there is no Triton that works with this device"
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else compilers)):
        return f"there is no compiler ({variable}={named})" if named else f"there is none of {', '.join(compilers)} on the path"
    return ""
