"""Measures what a training step of a shipped configuration takes in a process of its own, and prints it beside what was counted.

Run by ``test_step_memory.py``: ``step_memory_job.py CONFIG DATA MICRO_BATCH [key=value ...]``. Peaks are the
system's own (VmHWM), of a step after one that has filled the caches of libraries.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import torch

from sleepfm.config import load_config
from sleepfm.models.recompute import recompute_activations
from sleepfm.paths import config_root
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.training.job import Context
from sleepfm.training.ranks.distributed import World
from sleepfm.training.tracking.activations import count_activations

WORLD = World(0, 1, 0, 1)


def peak() -> int:
    """The most bytes of memory that this process has held since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(name: str, data: str, micro_batch: int, *overrides: str) -> None:
    torch.set_num_threads(1)
    settings = [f"data.path={data}", "monitor=none", "registry.metric=val/loss", "registry.mode=min", *overrides]
    config = load_config(PretrainConfig, config_root() / name, settings)
    stage = build_stage(config, Context(WORLD, "", "never", config))
    if config.train.recompute:
        recompute_activations(stage.module)
    counted = count_activations(stage, WORLD, "fp32").bytes(micro_batch)
    gradients = sum(parameter.nbytes for parameter in stage.module.parameters() if parameter.requires_grad)
    # Gradients are there from the first step on.
    stage.loss(stage.module, stage.stream.batch(0, micro_batch), 0).loss.backward()
    batch = stage.stream.batch(0, micro_batch)
    forget_peak()
    before = psutil.Process().memory_info().rss
    stage.loss(stage.module, batch, 0).loss.backward()
    print(json.dumps({"counted": counted, "measured": peak() - before, "gradients": gradients}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
