"""Where rank 0 puts the figures of a run: the trace on disk, the tracking server, the terminal."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sleepfm.config import to_dict
from sleepfm.training.config import RunConfig, config_digest
from sleepfm.training.engine import total_steps
from sleepfm.training.progress import Progress
from sleepfm.training.stage import Stage
from sleepfm.training.trace import Trace
from sleepfm.training.tracking import Tracker


class Recorder:
    """Rank 0's three places for figures: the trace on disk, the tracking server, the terminal."""

    def __init__(self, stage: Stage, config: RunConfig, store: str) -> None:
        output = Path(config.train.output)
        self._every = config.train.log_every
        self._steps = total_steps(config, stage)
        self._trace_path = output / "trace.jsonl"
        self._trace: Trace | None = None
        self._progress = Progress(stage.name, self._steps)
        self._status = "FAILED"
        self.tracker = Tracker(
            output,
            store,
            config.tracking.experiment,
            stage.name,
            to_dict(config),
            common_tags(stage, config),
            (output / "config.yaml",),
        )

    def report(self, step: int, row: dict[str, Any]) -> None:
        if "loss" not in row:
            self.tracker.log(step, row)
            self._progress.validated(step, row)
            return
        if self._trace is None:
            self._trace = Trace(self._trace_path, step - 1)
        self._trace.append(row)
        self._progress.stepped(row)
        if step % self._every == 0 or step == self._steps or row.get("skipped"):
            figures = {"train/loss": row["loss"], "train/lr": row["lr"], "train/grad_norm": row["grad_norm"]}
            figures |= {f"train/{name}": value for name, value in row["parts"].items()}
            figures |= {"speed/epochs_per_s": row["epochs_per_s"], "speed/data_wait": row["data_wait"]}
            figures |= {"train/skipped": 1.0} if row.get("skipped") else {}
            self.tracker.log(step, figures)

    def finished(self, status: str) -> None:
        self._status = status

    def close(self) -> None:
        if self._trace is not None:
            self._trace.close()
        warning = self.tracker.close(self._status)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)


def common_tags(stage: Stage, config: RunConfig) -> dict[str, str]:
    """What a run and every version made from it are marked with."""
    import torch

    return {
        "stage": stage.name,
        "dataset_digest": stage.dataset_digest,
        "config_digest": config_digest(config),
        "git_commit": git_commit(),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }


def git_commit() -> str:
    """The commit of the source tree that runs, with ``+`` if it has been changed; ``unknown`` outside one."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and (root / ".git").exists() else "unknown"
