"""Learning rates that fall from the head down to the first layer of an encoder.

As in ELECTRA and BEiT (Clark et al. 2020, Bao et al. 2022): each layer learns at ``decay`` times the rate of the one above it, so
that what is general, in the lower layers, changes least.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sleepfm.models.downstream import Downstream
from sleepfm.models.synthsleepnet import SynthSleepNet

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_BACKBONES = "backbones."


def layer_rates(model: Downstream, decay: float) -> Callable[[str], float]:
    """By the name of a parameter of ``model`` the factor of its learning rate.

    Heads and context have 1. Below are the blocks of the encoder, last first, with the norm behind them; then what comes before
    its blocks. The NeuroNets under a SynthSleepNet follow in the same way, all side by side.
    """
    encoder = model.encoder
    upper = encoder.config.encoder.depth
    has_backbones = isinstance(encoder, SynthSleepNet)
    lower = 0
    if has_backbones:
        lower = 1 + max(_depth(name) for name, _ in encoder.named_parameters() if name.startswith(_BACKBONES))

    def depth(name: str) -> int:
        """Layers between the parameter ``name`` and the head."""
        if not name.startswith("encoder."):
            return 0
        own = name.removeprefix("encoder.")
        if has_backbones and own.startswith(_BACKBONES):
            return 1 + upper + 1 + (lower - 1 - _level(own, lower - 1))
        return 1 + (upper - _level(own, upper))

    return lambda name: decay ** depth(name)


def _level(name: str, depth: int) -> int:
    """0 before the blocks of an encoder, else the number of the block from 1; the norm behind them is with the last."""
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    return depth if re.search(r"(?:^|\.)norm\.", name) else 0


def _depth(name: str) -> int:
    found = _BLOCK.search(name)
    return int(found[1]) + 1 if found else 0
