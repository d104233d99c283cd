"""What runs inside a job that `training.py` measures: a rank of the engine with clocks, or of a plain loop with DDP."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """Seconds spent in wrapped calls since the last :meth:`take`."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time every call of ``owner.name`` as ``part``."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - began

        setattr(owner, name, timed)

    def take(self) -> dict[str, float]:
        taken, self.spent = self.spent, {}
        return taken


class Rows:
    """Rank 0's row of every step that counts; ends the process when there are enough."""

    def __init__(self, count: int, path: Path, clock: Clock, parameters: int, output: Path) -> None:
        self._count, self._path, self._clock, self._output = count, path, clock, output
        self._parameters = parameters
        self._rows: list[dict[str, Any]] = []
        self._last = time.perf_counter()
        self._warm = 0

    def add(self, data_wait_seconds: float, counts: bool) -> None:
        import resource

        now = time.perf_counter()
        spent = self._clock.take()
        row: dict[str, Any] = {name: spent.get(name, 0.0) for name in ("forward", "backward", "optimiser", "save", "write")}
        row |= {"total": now - self._last, "data_wait": data_wait_seconds, "lo_bytes": _loopback_bytes()}
        self._last = now
        self._warm += counts
        if self._warm > 4:
            self._rows.append(row)
        if len(self._rows) == self._count:
            checkpoints = sorted((self._output / "checkpoints").glob("step-*"))
            size = sum(file.stat().st_size for file in checkpoints[-1].rglob("*") if file.is_file()) if checkpoints else 0
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            self._rows[-1] |= {"peak_rss_gib": peak, "trained_parameters": self._parameters, "checkpoint_bytes": size}
            self._path.write_text(json.dumps(self._rows))
            os._exit(0)


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    return 0


def main() -> None:
    """A rank of a measured job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--count", type=int)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--ddp", action="store_true")
    own, rest = parser.parse_known_args()
    run_ddp(own, rest) if own.ddp else run_engine(own, rest)


def run_engine(own: argparse.Namespace, rest: list[str]) -> None:
    """``launch/pretrain.py`` with clocks."""
    from sleepfm.stages.data_config import dataset_digest
    from sleepfm.stages.encoders import UnimodalStage
    from sleepfm.stages.pretrain import PretrainConfig, build_stage
    from sleepfm.training.job import run
    from sleepfm.training.ranks.distributed import import_deepspeed
    from sleepfm.training.state.writer import Writer
    from sleepfm.training.tracking.recorder import Recorder

    clock = Clock()
    engine = import_deepspeed().DeepSpeedEngine
    clock.wrap(UnimodalStage, "loss", "forward")
    clock.wrap(engine, "backward", "backward")
    clock.wrap(engine, "step", "optimiser")
    # What stops training: copying the state, and going on to the next stage of the save. The rest is the thread's.
    clock.wrap(Writer, "save", "save")
    clock.wrap(Writer, "advance", "save")
    clock.wrap(Writer, "_write", "write")
    clock.wrap(Writer, "_publish", "write")
    inner, rows = Recorder.report, []

    def report(self: Any, step: int, row: dict[str, Any]) -> None:
        inner(self, step, row)
        if not rows:
            facts = sum(p.numel() for p in stages[0].module.parameters() if p.requires_grad)
            rows.append(Rows(own.count, own.figures, clock, facts, Path(stages[0].config.train.output)))
        seconds = stages[0].config.train.global_batch / row["epochs_per_s"]
        rows[0].add(row["data_wait"] * seconds, bool(self.tracker.run_id))

    stages: list[Any] = []

    def build(*arguments: Any) -> Any:
        stages.append(build_stage(*arguments))
        return stages[-1]

    Recorder.report = report  # type: ignore[method-assign]
    sys.argv = [__file__, *rest]
    run(PretrainConfig, build, dataset_digest, "measured")


def run_ddp(own: argparse.Namespace, rest: list[str]) -> None:
    """The same stage in a plain loop with DistributedDataParallel."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from sleepfm.config import load_config
    from sleepfm.stages.encoders import UnimodalStage
    from sleepfm.stages.pretrain import PretrainConfig
    from sleepfm.training.compute_dtype import settle
    from sleepfm.training.feed import Feed, Shares
    from sleepfm.training.ranks.distributed import World, start
    from sleepfm.training.ranks.precision import bf16_products
    from sleepfm.training.schedule import learning_rate, parameter_groups

    world = World.from_environment()
    config = load_config(PretrainConfig, rest[0], rest[1:])
    start(world, 600)
    config = settle(config, world)
    stage, train = UnimodalStage(config), config.train
    steps = 100_000
    module = DistributedDataParallel(stage.module.train().to(world.device), broadcast_buffers=False)
    optimiser = torch.optim.AdamW(parameter_groups(stage.module, train.weight_decay), lr=train.lr, betas=train.betas)
    shares = Shares.of(train, world)
    feed = Feed(stage.stream, shares, world, 0, steps)
    # As the engine multiplies; inactive outside of autocast.
    products = bf16_products(world.device)
    clock = Clock()
    clock.wrap(stage, "loss", "forward")
    clock.wrap(torch.Tensor, "backward", "backward")
    clock.wrap(optimiser, "step", "optimiser")
    parameters = sum(p.numel() for p in stage.module.parameters() if p.requires_grad)
    rows = Rows(own.count, own.figures, clock, parameters, Path(train.output)) if world.is_main else None
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(train, step, steps)
        waited = feed.waited_seconds
        batch = feed.next()
        with torch.autocast(world.device.type, torch.bfloat16, enabled=config.deepspeed.dtype == "bf16"), products:
            loss = stage.loss(module, batch, train.seed).loss
        loss.backward()
        if train.clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), train.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if rows is not None:
            rows.add(feed.waited_seconds - waited, True)


if __name__ == "__main__":
    main()
