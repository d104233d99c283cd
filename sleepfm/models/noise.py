"""Masking noise that belongs to an item, not to a batch, rank, worker or restart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_KEY_MASK = (1 << 64) - 1


def noise_for(items: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform(0, 1) noise ``[B, *shape]`` in fp32 for ``items`` ``[B]`` (global item positions).

    Row ``b`` is a function of ``(seed, items[b])`` alone: Philox-4x64 (Salmon et al., SC 2011) keyed by the
    two.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed & _KEY_MASK, item & _KEY_MASK], dtype=np.uint64)))
        for item in items.tolist()
    ]
    noise = np.empty((len(rows), *shape), dtype=np.float32)
    for place, generator in enumerate(rows):
        noise[place] = generator.random(shape, dtype=np.float32)
    return torch.from_numpy(noise).to(items.device)
