"""Where rank 0 puts the figures of a run: the trace on disk, the tracking server, the terminal."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm.config import to_dict
from sleepfm.console import warn
from sleepfm.data.identity import as_digest
from sleepfm.data.report import report_of
from sleepfm.files import write_json
from sleepfm.training.engine import is_logged, total_steps
from sleepfm.training.folder import RunFolder
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig, config_digest
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.flops import peak_flops
from sleepfm.training.tracking.goodput import Goodput
from sleepfm.training.tracking.machine import Sampler, environment
from sleepfm.training.tracking.progress import Progress
from sleepfm.training.tracking.trace import Trace
from sleepfm.training.tracking.tracker import Tracker


class Recorder(Observer):
    """Rank 0's three places for figures: the trace on disk, the tracking server, the terminal."""

    def __init__(self, stage: Stage, config: RunConfig, store: str, world: World, flops: float, goodput: Goodput) -> None:
        """``flops`` is the arithmetic of one item, see :func:`sleepfm.training.tracking.flops.item_flops`."""
        folder = RunFolder(config.train.output)
        self._config, self._goodput = config, goodput
        self._steps = total_steps(config, stage)
        self._trace_path = folder.trace
        self._trace: Trace | None = None
        self._progress = Progress(stage.name, self._steps)
        self._status = "FAILED"
        self._step = 0
        self._reported = time.monotonic()
        self._reading = report_of(stage.stream)
        peak, peak_source = peak_flops(world.device, config.deepspeed.compute_dtype)
        # Share of the peak of all devices at one 30-s epoch a second.
        self._mfu_per_epoch = flops / stage.epochs_per_item / (peak * world.size)
        facts = {
            "processes": world.size,
            "parameters": sum(p.numel() for p in stage.module.parameters()),
            "trained_parameters": sum(p.numel() for p in stage.module.parameters() if p.requires_grad),
            "step_flops": flops * config.train.global_batch,
            "peak_flops": f"{peak:.4g} a device ({peak_source})",
        }
        tags, segments = common_tags(stage, config), folder.segments()
        write_json(folder.environment, environment(tags["git_commit"]))
        self.tracker = Tracker(
            folder.root,
            store,
            config.tracking.experiment,
            stage.name,
            to_dict(config) | {"run": facts},
            tags,
            (folder.config, folder.environment),
            stage.dataset_digest,
            (len(segments) - 1, segments[-1].step),
        )
        self._sampler = Sampler(folder.root, lambda figures: self.tracker.log(self._step, figures))

    def report(self, step: int, row: dict[str, Any]) -> None:
        self._step = step
        before, self._reported = self._reported, time.monotonic()
        if "loss" not in row:
            # What a validation stops: everything since the step before it was reported.
            seconds = {"speed/validation_seconds": self._reported - before}
            self.tracker.log(step, row | seconds | self._goodput.figures())
            self._progress.validated(step, row)
            return
        if self._trace is None:
            self._trace = Trace(self._trace_path, step - 1)
        self._trace.append(row)
        self._progress.stepped(row, self._goodput.share())
        if is_logged(self._config, step, self._steps) or row.get("skipped"):
            figures = {"train/loss": row["loss"], "train/lr": row["lr"], "train/grad_norm": row["grad_norm"]}
            figures |= {f"train/{name}": value for name, value in row["parts"].items()}
            figures |= {"speed/epochs_per_s": row["epochs_per_s"], "speed/data_wait": row["data_wait"]}
            figures |= {"speed/mfu": row["epochs_per_s"] * self._mfu_per_epoch}
            figures |= {"train/skipped": 1.0} if row.get("skipped") else {}
            figures |= self._reading.figures() if self._reading else {}
            self.tracker.log(step, figures)

    def exported(self, step: int, figures: Mapping[str, float]) -> None:
        self.tracker.log(step, figures)

    def ended(self, status: str) -> None:
        self._status = status

    def close(self) -> None:
        if self._trace is not None:
            self._trace.close()
        self._sampler.close()
        # After a failure the reason must be said before the launcher ends this process; the journal keeps the figures.
        warning = self.tracker.close(self._status, 30.0 if self._status == "FINISHED" else 1.0)
        if warning:
            warn(warning)


def common_tags(stage: Stage, config: RunConfig) -> dict[str, str]:
    """What a run and every version made from it are marked with."""
    import torch

    return {
        "stage": stage.name,
        "dataset_digest": str(stage.dataset_digest),
        **as_digest(stage.dataset_digest).tags(),
        "config_digest": config_digest(config),
        "git_commit": git_commit(),
        # On the run as well, from its beginning: a version that somebody trains from is not pruned.
        "parents": json.dumps(list(stage.parents)),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        **RunFolder(config.train.output).lineage(),
    }


def git_commit() -> str:
    """The commit of the source tree that runs, with ``+`` if it has been changed; ``unknown`` outside one."""
    root = Path(__file__).parents[3]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and (root / ".git").exists() else "unknown"
