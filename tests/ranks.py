"""Ranks of a small job as processes of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from sleepfm.training.ranks.ending import end


def spawn_ranks(work: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """Run ``work(rank, *args)``, a function of a module, in ``count`` processes; an error of one is raised here."""
    torch.multiprocessing.spawn(_work_and_end, (work, args), nprocs=count)


def _work_and_end(rank: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    work(rank, *args)
    dist.destroy_process_group()
    # As the ranks of a real job end. While the interpreter tears torch and gloo down, their threads may abort the process
    # although all of its work is done.
    end(0)
