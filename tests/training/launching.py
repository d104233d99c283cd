"""Starting the toy stage under the real ``deepspeed`` launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from ports import free_port

TOY = Path(__file__).with_name("toy.py")
CONFIG = """
train:
  output: run
  steps: 12
  global_batch: 8
  accumulation: 2
  lr: 0.01
  warmup: 3
  clip: 0.5
  weight_decay: 0.1
  checkpoint_every: 4
  validate_every: 5
deepspeed: {zero: 1, dtype: fp32}
registry: {name: toy, metric: val/error, mode: min, every_best: false}
"""


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def command(processes: int, *arguments: str) -> list[str]:
    """The launcher on a free port, so that tests can run beside other jobs."""
    launcher = Path(sys.executable).with_name("deepspeed")
    options = ["--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "critical"]
    return [str(launcher), *options, str(TOY), "toy.yaml", *arguments]


def launch(folder: Path, processes: int, *arguments: str, node: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the toy in ``folder`` to its end; ``node`` starts DeepSpeed's launcher of a node without the command around it,
    which saves tests of many launches half their time.
    """
    line = [sys.executable, "-m", "sleepfm.training.launcher", str(processes), str(TOY), "toy.yaml", *arguments]
    if not (folder / "toy.yaml").exists():
        (folder / "toy.yaml").write_text(CONFIG)
    return subprocess.run(
        line if node else command(processes, *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=900,
    )


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the toy in ``folder`` in one process without a launcher."""
    if not (folder / "toy.yaml").exists():
        (folder / "toy.yaml").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, str(TOY), "toy.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=900,
    )


def hear_signals() -> None:
    """In a process that begins: whatever started the tests (``nohup``, ``&``) may have them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """A process and everything below it."""
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]


def trace(folder: Path, run: str = "run") -> list[dict[str, Any]]:
    """The loss trace without timings."""
    rows = [json.loads(line) for line in (folder / run / "trace.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("epochs_per_s", "data_wait")} for row in rows]
