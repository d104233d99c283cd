"""Low-rank adaptation of frozen linear layers, one adapter a channel over one shared weight.

LoRA (arXiv 2106.09685) adds ``scale * B A x`` to a frozen ``W x``; rank-stabilised scaling (arXiv 2312.03732) is
``scale = alpha / sqrt(rank)``. The channels of a modality (left and right EOG, C3 and C4) share one frozen backbone and differ
only in their adapters, so they run stacked in one batch, as many rows for each adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.errors import ModelError


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` with ``adapters`` low-rank updates.

    Args:
        base: the layer to adapt; its parameters are frozen and stay bit-identical.
        adapters: how many independent updates (channels that share ``base``).
        rank, alpha, dropout: of every update.

    ``lora_a`` is ``[A, R, in]`` (Gaussian, standard deviation ``1 / rank``), ``lora_b`` is ``[A, out, R]`` (zero), so the layer
    starts equal to ``base``.
    """

    def __init__(self, base: nn.Linear, adapters: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        if rank < 1 or adapters < 1:
            raise ModelError(f"LoRA needs a rank and a number of adapters of at least 1, found {rank} and {adapters}")
        self.base = base.requires_grad_(False)
        self.scale = alpha / math.sqrt(rank)
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(torch.empty(adapters, rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(adapters, base.out_features, rank))
        nn.init.normal_(self.lora_a, std=1 / rank)
        self._index: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, S, in] -> [N, S, out]``; the rows are those of the adapters that :func:`adapters` names, one after the other.

        A layer with one adapter needs no names and takes any shape ``[..., in]``.

        Raises:
            ModelError: several adapters and none named, or a number of rows that they cannot share equally.
        """
        low_in = self.dropout(x)
        if self.lora_a.shape[0] == 1:
            return self.base(x) + self.scale * F.linear(F.linear(low_in, self.lora_a[0]), self.lora_b[0])
        index = self._index
        if index is None or x.shape[0] % len(index):
            found = "none named" if index is None else f"{len(index)} of them"
            raise ModelError(f"{x.shape[0]} rows need adapters that share them equally, found {found}; use adapters(...)")
        low_in = low_in.unflatten(0, (len(index), x.shape[0] // len(index))).flatten(1, 2)  # [A, n S, in]
        low = torch.bmm(low_in, self._chosen(self.lora_a, index).transpose(1, 2).to(low_in.dtype))
        update = torch.bmm(low, self._chosen(self.lora_b, index).transpose(1, 2).to(low.dtype))
        return self.base(x) + self.scale * update.view(*x.shape[:2], self.lora_b.shape[1])

    @staticmethod
    def _chosen(updates: Tensor, index: tuple[int, ...]) -> Tensor:
        """Those at ``index`` of ``updates`` ``[A, ...]``."""
        if index == tuple(range(updates.shape[0])):
            return updates
        return torch.stack([updates[number] for number in index])


def add_lora(
    module: nn.Module, targets: Sequence[str], adapters: int, rank: int, alpha: float, dropout: float
) -> list[LoRALinear]:
    """Replace every ``nn.Linear`` of ``module`` whose whole name matches one of the regular expressions ``targets``.

    Returns:
        The new layers.

    Raises:
        ModelError: no layer matched, which would silently train nothing.
    """
    wanted = re.compile("|".join(f"(?:{target})" for target in targets))
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and wanted.fullmatch(n)]
    if not names:
        raise ModelError(f"LoRA targets {list(targets)} match no linear layer of {type(module).__name__}")
    layers = []
    for name in names:
        parent, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        layers.append(LoRALinear(getattr(parent, leaf), adapters, rank, alpha, dropout))
        setattr(parent, leaf, layers[-1])
    return layers


@contextmanager
def adapters(module: nn.Module, index: Sequence[int]) -> Iterator[None]:
    """Within the block every :class:`LoRALinear` of ``module`` uses the adapters ``index``, each for an equal share of the rows,
    in this order.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, LoRALinear)]
    for layer in layers:
        layer._index = tuple(index)
    try:
        yield
    finally:
        for layer in layers:
            layer._index = None
