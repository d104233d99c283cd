"""A stage small enough to be launched many times, run by the tests as ``deepspeed toy.py CONFIG key=value``.

It has what makes resuming hard: dropout, batch statistics, undecayed parameters, a frozen part.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleepfm.config import Config, to_dict
from sleepfm.data.batch import Batch
from sleepfm.models.recompute import recomputable
from sleepfm.training.job import Context, run
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Export, StepLoss

# Of the configuration in launching.py.
GLOBAL_BATCH = 8


class ToyConfig(Config):
    width: int = 16
    dropout: float = 0.1
    statistics: bool = True
    nan_at: tuple[int, ...] = ()
    """Items whose loss is not finite."""
    seconds: float = 0.0
    """Seconds a micro-step takes, so that a test can interrupt it."""
    kill_at: tuple[int, ...] = ()
    """Items at each of which the process kills itself, unless the file ``kill_flag`` with the item's number is there."""
    kill_flag: str = ""
    trains: str = ""
    """Regular expression of the parameters that train, instead of all but the frozen ones."""
    differ: bool = False
    """Whether ranks start with different weights."""
    wait_at: int = -1
    """Item at which the process waits for the file ``wait_flag``."""
    wait_flag: str = ""
    stall_at: int = -1
    """Item at which the process stops moving."""
    hang_at: int = -1
    """Item of the step at which every rank waits for a message that no rank sends."""
    validate_s: tuple[float, ...] = ()
    """Seconds that the items of a validation take, which the ranks share."""
    embed_s: tuple[float, ...] = ()
    """Seconds that items take which the ranks share before the first step, as an embedding's."""
    hang_in_embedding: bool = False
    """Whether rank 0 stops moving in that."""
    hang_in_validation: bool = False
    """Whether rank 0 stops moving in a validation."""
    fail_at: int = -1
    """Item at which NCCL's error is raised, once if there is a ``fail_flag``, a file's name."""
    fail_flag: str = ""
    errors: tuple[float, ...] = ()
    """What validations say, one after the other, instead of the error."""
    outer_rate: float = 1.0
    """Factor of the learning rate of the last layer."""
    builder: str = "build_toy"
    """What makes the module when the package is load-tested."""


class ToyRunConfig(RunConfig):
    toy: ToyConfig = ToyConfig()


class ToyStream:
    def __len__(self) -> int:
        return 40

    def batch(self, start: int, count: int) -> Batch:
        rows = []
        for item in range(start, start + count):
            generator = torch.Generator().manual_seed(item % len(self))
            rows.append(torch.randn(8, generator=generator))
        ones = torch.ones(count, 1, dtype=torch.bool)
        items = torch.arange(start, start + count)
        names = [f"night{position % len(self)}" for position in items.tolist()]
        return Batch(torch.stack(rows), ones, ones, {}, items, names, torch.zeros(count, dtype=torch.long))


@recomputable
class ToyHidden(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        # Before a batch norm a bias does nothing: its gradient is rounding, which Adam would magnify.
        self.inner = nn.Linear(8, config.width, bias=not config.statistics)
        self.norm = nn.BatchNorm1d(config.width) if config.statistics else nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(nn.functional.gelu(self.norm(self.inner(x))))


class ToyModule(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.hidden = ToyHidden(config)
        self.outer = nn.Linear(config.width, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 8))

    def forward(self, signals: Tensor) -> Tensor:
        return self.outer(self.hidden(self.frozen(signals))) + self.cls_token


def rest_together(work: SharedWork, what: str, seconds: tuple[float, ...], hangs: bool) -> None:
    """Work of the ranks that takes so long an item; after it, rank 0 may stop moving."""

    def take(share: range) -> Iterator[tuple[Tensor, ...]]:
        for item in share:
            time.sleep(seconds[item])
            yield ()

    work.each(what, [1] * len(seconds), take)
    if hangs and work.world.is_main:
        time.sleep(3600)


class ToyStage:
    name = "toy"
    epochs_per_item = 1
    # A host may have other data than the others.
    dataset_digest = hashlib.sha256(os.environ.get("TOY_DATA", "toy").encode()).hexdigest()
    parents: tuple[str, ...] = ()

    def __init__(self, config: ToyRunConfig, context: Context) -> None:
        self.toy = config.toy
        self.weight_decay = config.train.weight_decay
        torch.manual_seed(config.train.seed + (context.world.rank if config.toy.differ else 0))
        self.module = ToyModule(config.toy)
        if config.toy.trains:
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(bool(re.match(config.toy.trains, name)))
        self.stream = ToyStream()
        self.validations = 0
        rest_together(context.work, "embedding", self.toy.embed_s, self.toy.hang_in_embedding)

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        time.sleep(self.toy.seconds)
        for item in set(self.toy.kill_at) & set(batch.item.tolist()):
            flag = Path(f"{self.toy.kill_flag}.{item}")
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        while self.toy.wait_at in batch.item and not Path(self.toy.wait_flag).exists():
            time.sleep(0.1)
        if self.toy.stall_at in batch.item:
            time.sleep(3600)
        if self.toy.hang_at >= 0 and self.toy.hang_at // GLOBAL_BATCH == batch.item[0] // GLOBAL_BATCH:
            dist.recv(torch.zeros(1), (dist.get_rank() + 1) % dist.get_world_size())
        failed = Path(self.toy.fail_flag or "never")
        if self.toy.fail_at in batch.item and not failed.exists():
            if self.toy.fail_flag:
                failed.touch()
            raise dist.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:2027, remote process exited or there was a network error"
            )
        output = model(batch.signals).float()
        error = (output - batch.signals).pow(2).mean(1)
        bad = torch.isin(batch.item, torch.tensor(self.toy.nan_at, dtype=torch.long).to(batch.item.device))
        error = error * torch.ones_like(error).masked_fill(bad, float("nan"))
        # Sum and sum of squares say which items a step took, whichever rank took them.
        items = batch.item.double()
        return StepLoss(error.mean(), {"largest": error.max(), "items": items.mean(), "squares": items.square().mean()})

    def rate_of(self, name: str) -> float:
        return self.toy.outer_rate if name.startswith("outer.") else 1.0

    def validate(self, module: nn.Module, work: SharedWork) -> dict[str, float]:
        rest_together(work, "items", self.toy.validate_s, self.toy.hang_in_validation)
        signals = ToyStream().batch(10_000, 40).signals.to(next(module.parameters()).device)
        error = (module(signals) - signals).pow(2).mean().item()
        self.validations += 1
        return {"val/error": self.toy.errors[self.validations - 1] if self.toy.errors else error}

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export:
        metrics = {"test/one": 1.0} if final else {}
        return Export({"model": to_dict(self.toy)}, "# toy\n", metrics, builder=f"toy:{self.toy.builder}")


def build_toy(config: dict[str, Any]) -> ToyModule:
    return ToyModule(ToyConfig.model_validate(config))


def build_wider_toy(config: dict[str, Any]) -> ToyModule:
    """Not what was trained."""
    return build_toy(config | {"width": config["width"] + 1})


if __name__ == "__main__":
    run(ToyRunConfig, ToyStage, lambda config: ToyStage.dataset_digest, "toy")
