"""How soon training goes on after something was lost, and how much of it was.

    python benchmarks/losses.py [--data SHARDS] [--only CASE,...] [--turns N] [--json FILE]

Two hosts of one process each, by ``launch/node.sh``, on this machine: ``launch/pretrain.py`` with ``eeg-tiny``. One of them, with
rank 0 or without, loses all its processes (``host 0``, ``host 1``), or its training process is killed or stopped (``killed``,
``stopped``). A lost host stays away: the other goes on alone. Seconds are from the loss, and from the line that says so, to the
first step that the trace did not have; beside them those of the first start. With ``--json``, cases are merged into the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from machine import describe
from training import REPOSITORY, make_data

CASES = ("host 0", "host 1", "killed", "stopped")
# Between two looks at a trace or a log.
LOOK_S = 0.02
# The step at which something is lost: some steps after a checkpoint.
STEP = 25


class Job:
    """The hosts of one job, whose run is ``output``."""

    def __init__(self, data: Path, output: Path) -> None:
        from sleepfm.training.ranks.distributed import free_port

        self._output = output
        overrides = [f"data.path={data}", f"train.output={output}", "train.global_batch=64", "train.passes=null"]
        overrides += ["train.steps=100000", "train.checkpoint_every=10", "train.validate_every=0", "data.validation_items=0"]
        job = ["launch/pretrain.py", "configs/pretrain/eeg-tiny.yaml", *overrides]
        common = {"NODES": "127.0.0.1 127.0.0.2", "PROCESSES": "1", "MASTER_PORT": free_port(), "PYTHON": sys.executable}
        common |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        common |= {"MLFLOW_TRACKING_URI": f"sqlite:///{output}.db", "PYTHONPATH": str(REPOSITORY)}
        self._logs = [output.with_suffix(f".{rank}.log") for rank in range(2)]
        self.hosts = [
            subprocess.Popen(
                ["bash", "launch/node.sh", *job],
                cwd=REPOSITORY,
                env=os.environ | common | {"NODE_RANK": str(rank)},
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank, log in enumerate(self._logs)
        ]

    def until_step(self, step: int) -> None:
        """The trace has that step."""
        while self.steps() < step:
            self._check()
            time.sleep(LOOK_S)

    def until_said(self, text: str) -> None:
        """A host has."""
        while not any(text in log.read_text(errors="replace") for log in self._logs):
            self._check()
            time.sleep(LOOK_S)

    def trace(self) -> str:
        path = self._output / "trace.jsonl"
        return path.read_text() if path.exists() else ""

    def steps(self) -> int:
        """The trace's last."""
        lines = self.trace().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0

    def checkpoint(self) -> int:
        """The newest one's step."""
        return int((self._output / "checkpoints" / "latest").read_text().strip().rsplit("-", 1)[-1])

    def lose(self, what: str) -> None:
        if what.startswith("host"):
            _kill(self.hosts[int(what.split()[1])])
            return
        rank = next(found for found in _family(self.hosts[1]) if "--local_rank=0" in found.cmdline())
        rank.send_signal(signal.SIGKILL if what == "killed" else signal.SIGSTOP)

    def close(self) -> None:
        for host in self.hosts:
            _kill(host)
            host.wait()

    def _check(self) -> None:
        if all(host.poll() is not None for host in self.hosts):
            raise SystemExit("\n".join(log.read_text(errors="replace")[-3000:] for log in self._logs))


def _family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]


def _kill(process: subprocess.Popen[Any]) -> None:
    """With all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for found in _family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.kill()


def measure(what: str, data: Path, output: Path) -> dict[str, float]:
    """One job from its start to the first new step after the loss."""
    began = time.perf_counter()
    job = Job(data, output)
    try:
        job.until_step(1)
        start = time.perf_counter() - began
        job.until_step(STEP)
        job.lose(what)
        lost = time.perf_counter()
        job.until_said("was lost (start 1)")
        seen = time.perf_counter()
        # What was done when it was lost, and what the next start begins from.
        known, step, checkpoint = job.trace(), job.steps(), job.checkpoint()
        job.until_said("start 2 on")
        # The trace is cut back to the checkpoint, and grows again.
        while job.trace() == known or job.steps() <= checkpoint:
            time.sleep(LOOK_S)
        redone = time.perf_counter()
        job.until_step(step + 1)
        now = time.perf_counter()
    finally:
        job.close()
    return {
        "start_s": start,
        "seen_s": seen - lost,
        "first_step_s": redone - lost,
        "first_step_after_seen_s": redone - seen,
        "new_step_s": now - lost,
        "steps_lost": step - checkpoint,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="a built data set; default: a synthetic one, made first")
    parser.add_argument("--only", default=",".join(CASES), metavar="CASE,...", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="jobs of each case (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    known = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    cases = known.get("cases", {})
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = arguments.data.resolve() if arguments.data else make_data(scratch, 12)
        for what in arguments.only.split(","):
            turns = [measure(what, data, scratch / f"{what.replace(' ', '-')}-{turn}") for turn in range(arguments.turns)]
            cases[what] = {"turns": len(turns)} | {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            cases[what]["most_first_step_after_seen_s"] = max(turn["first_step_after_seen_s"] for turn in turns)
            print(f"{what}: {json.dumps(cases[what])}", flush=True)
    if arguments.json:
        found = {"machine": describe(), "cases": cases}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
