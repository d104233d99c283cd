"""Learning rate over steps, and which parameters are decayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from sleepfm.training.run_config import TrainConfig

# Parameters of the state-space model that hold rates and gains rather than weights (Mamba-2 does not
# decay them).
_UNDECAYED_NAMES = ("A_log", "D", "dt_bias")


def steps_of(config: TrainConfig, items: int) -> int:
    """Optimiser steps of a run over a stream of which one pass has so many ``items``."""
    if config.steps is not None:
        return config.steps
    assert config.passes is not None
    return max(1, math.ceil(config.passes * items / config.global_batch))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``: linear warm-up, then cosine to ``final_lr *
    lr``.

    A function of the step alone, so that a resumed run needs no scheduler state.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and kernels: not for norms, biases, tokens, positions or SSM rates."""
    leaf = name.rsplit(".", 1)[-1]
    if parameter.ndim < 2 or leaf in _UNDECAYED_NAMES:
        return False
    return not any("token" in part or "pos_embed" in part for part in name.split("."))


def parameter_groups(
    module: nn.Module, weight_decay: float, factor: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters of ``module`` as groups without empty ones: decayed and undecayed, each by the ``factor`` of its
    learning rate, ``lr_factor`` of the group.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(decayed, 1.0): [] for decayed in (True, False)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_decayed(name, parameter), factor(name)), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if decayed else 0.0, "lr_factor": rate}
        for (decayed, rate), members in groups.items()
        if members
    ]
