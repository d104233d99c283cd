"""Whose embeddings a contrastive loss compares with: those of all ranks, of a node, or of a group of ranks."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from sleepfm.config import Config
from sleepfm.errors import ConfigError

# The watchdog of a job knows what moves: no collective is to give up before it.
_TIMEOUT = datetime.timedelta(days=30)


class RankGroup(Config):
    """``{group: N}``: consecutive ranks, ``N`` at a time."""

    group: int = Field(ge=1)


Negatives = Literal["global", "node"] | RankGroup
"""``global``: all ranks. ``node``: the ranks of one host. ``{group: N}``: ``N`` consecutive ranks. With fewer than all ranks the
loss is the mean over the groups, and depends on which ranks hold an item, as with ``train.batch_norm: rank``.
"""


class Contrastive(Config):
    """What the configurations of models with a contrastive loss share."""

    negatives: Negatives = "global"

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The key is written where it says something: records and packages from before it are then as they would be now."""
        values: dict[str, Any] = plain(self)
        if self.negatives == "global":
            del values["negatives"]
        return values


def group_size(negatives: Negatives, ranks: int, ranks_per_node: int) -> int:
    """How many of ``ranks`` are compared with each other.

    Raises:
        ConfigError: the size does not divide the ranks.
    """
    if negatives == "global":
        return ranks
    size = ranks_per_node if negatives == "node" else negatives.group
    if ranks % size:
        said = "node" if negatives == "node" else f"{{group: {size}}}"
        raise ConfigError(
            f"model.negatives={said}: groups of {size} ranks do not divide {ranks} ranks; take a size that divides "
            "them, or global"
        )
    return size


@dataclass(frozen=True)
class Compared:
    """The ranks that are compared with each other, this one among them.

    Attributes:
        size: how many they are.
        rank: this one's place among them.
        group: they alone; None for one rank, or for all of them.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """``[n, ...]`` of every rank to ``[size n, ...]``, in one collective; every rank has the same ``n``. No gradient."""
        if self.size == 1:
            return rows
        everyone = rows.new_empty(self.size * rows.shape[0], *rows.shape[1:])
        # By bytes, since not every backend knows every type.
        dist.all_gather_into_tensor(everyone.view(torch.uint8), rows.contiguous().view(torch.uint8), group=self.group)
        return everyone


_made: dict[int, tuple[dist.ProcessGroup, Compared]] = {}


def compared(negatives: Negatives) -> Compared:
    """The ranks that this one is compared with.

    The first call makes their process group, so every rank makes it at the same place: the count of a stage's arithmetic before
    the first step. Later calls find it.

    Raises:
        ConfigError: see :func:`group_size`.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Compared()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    size = group_size(negatives, ranks, int(os.environ.get("LOCAL_SIZE", "1")))
    if size == ranks:
        return Compared(ranks, rank)
    everyone = dist.group.WORLD
    assert everyone is not None
    world, found = _made.get(size, (None, None))
    if found is None or world is not everyone:
        first = rank // size * size
        group = None
        if size > 1:
            # Only its members make a group: to make all of them everywhere would take minutes with a thousand ranks.
            members = list(range(first, first + size))
            group = dist.new_group(members, timeout=_TIMEOUT, use_local_synchronization=True)
        found = Compared(size, rank - first, group)
        _made[size] = (everyone, found)
    return found


def sent_bytes(items: int, width: int, ranks: int, bf16: bool) -> float:
    """Bytes that each of ``ranks`` sends, by a ring, for one loss over ``items`` pairs a rank with embeddings of ``width``.

    Embeddings with their validity go round once; instead of their gradients one fp32 number a row does.
    """
    row = (width + padding(bf16)) * (2 if bf16 else 4) + 4
    return (ranks - 1) * 2 * items * row


def padding(bf16: bool) -> int:
    """Columns that validity takes in a message: as many as keep rows at multiples of 16 bytes, which products want."""
    return 8 if bf16 else 4
