"""What training costs beside the arithmetic: overhead of a step, waiting for data, saves, ZeRO beside DDP, scaling, resuming.

    python benchmarks/training.py [--data SHARDS] [--only CASE,...] [--steps N] [--json FILE]

Every figure is of rank 0 of a real job: ``launch/pretrain.py``'s configuration under DeepSpeed's node launcher, with clocks
around the calls of forward (with the loss), backward and optimiser. What is outside of these is the engine's: data, dropout
seeds, the norm of the gradients, means over ranks, trace, tracking, progress. The first steps, until the tracking run is open, do
not count. ``ddp`` is the same stage, data, optimiser and precision in a plain loop with DistributedDataParallel. Each process has
one thread and, in a job of one process, one core. Bytes are those of the loopback device in a network namespace of the job's
own (needs root). With ``--json``, cases are merged into the file, so that they may be measured one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

REPOSITORY = Path(__file__).resolve().parents[1]
# Config, items a process and step, steps that count. The base size is far larger than two cores are meant for: few items.
SIZES = {"tiny": ("eeg-tiny", 64, 40), "base": ("eeg-base", 2, 8)}
# Gradients of ZeRO 1 are summed on every rank by default; "zero1-reduced" sums each on the one that keeps it.
VARIANTS = ("ddp", "zero0", "zero1", "zero1-reduced", "zero2")
REDUCED = '{"zero_optimization":{"use_multi_rank_bucket_allreduce":false}}'
CHECKPOINT_EVERY = 200  # the default of train.checkpoint_every


def cases() -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Every case by name."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {}
    for size in SIZES:
        for variant in VARIANTS:
            found[f"{size}-{variant}"] = lambda bench, size=size, variant=variant: bench.steps(size, variant, 2)
        found[f"{size}-one-process"] = lambda bench, size=size: bench.steps(size, "zero1", 1)
        found[f"{size}-save"] = lambda bench, size=size: bench.saves(size)
        found[f"{size}-resume"] = lambda bench, size=size: bench.resume(size)
    return found


class Bench:
    """Starts jobs in a scratch folder on one data set."""

    def __init__(self, data: Path, scratch: Path, steps: int | None) -> None:
        self._data, self._scratch, self._steps = data, scratch, steps
        self._isolated = os.geteuid() == 0 and shutil.which("unshare") is not None and shutil.which("ip") is not None

    def steps(self, size: str, variant: str, processes: int) -> dict[str, Any]:
        """Seconds and shares of a step."""
        config, items, count = SIZES[size]
        rows = self._measure(config, variant, processes, items * processes, count, save_every=10_000)
        total = sum(row["total"] for row in rows)
        parts = {name: sum(row[name] for row in rows) for name in ("forward", "backward", "optimiser", "data_wait")}
        outside = total - parts["forward"] - parts["backward"] - parts["optimiser"]
        result = {
            "processes": processes,
            "items_a_process": items,
            "steps": len(rows),
            "step_seconds": statistics.median(row["total"] for row in rows),
            "items_a_second": items * processes * len(rows) / total,
            "outside_share": outside / total,
            "data_wait_share": parts["data_wait"] / total,
            "seconds": {name: parts[name] / len(rows) for name in ("forward", "backward", "optimiser")},
            "peak_rss_gib": rows[-1]["peak_rss_gib"],
            "trained_parameters": rows[-1]["trained_parameters"],
        }
        if self._isolated and processes > 1:
            # Every byte on the loopback device was sent by one of the processes.
            sent = rows[-1]["lo_bytes"] - rows[0]["lo_bytes"]
            result["bytes_sent_a_process_and_step"] = sent / (len(rows) - 1) / processes
        return result

    def saves(self, size: str) -> dict[str, Any]:
        """What a save stops, as a share of the default interval at this size's steps, and what its thread does meanwhile."""
        config, items, count = SIZES[size]
        every = 4
        rows = self._measure(config, "zero1", 2, items * 2, count, save_every=every)
        # Steps from one save to the next: the copy, and the moments at which the save goes on to its next stage.
        saves = [sum(row["save"] for row in rows[start : start + every]) for start in range(0, len(rows) - every + 1, every)]
        writes = [sum(row["write"] for row in rows[start : start + every]) for start in range(0, len(rows) - every + 1, every)]
        step = statistics.median(row["total"] - row["save"] for row in rows)
        return {
            "saves": len(saves),
            "save_seconds": statistics.median(saves),
            "background_seconds": statistics.median(writes),
            "step_seconds": step,
            "interval_steps": CHECKPOINT_EVERY,
            "stall_share": statistics.median(saves) / (statistics.median(saves) + CHECKPOINT_EVERY * step),
            "step_seconds_for_0.3_percent": statistics.median(saves) * (1 / 0.003 - 1) / CHECKPOINT_EVERY,
            "checkpoint_bytes": rows[-1]["checkpoint_bytes"],
        }

    def resume(self, size: str) -> dict[str, Any]:
        """From starting the command again, after SIGKILL to every process, to the first new step in the trace."""
        config, items, _ = SIZES[size]
        found = {}
        for launcher in ("deepspeed", "node launcher"):
            output = self._scratch / f"resume-{size}-{launcher.split()[0]}"
            command = self._command(launcher, 2, self._job(config, 1, items * 2, output, 4, plain=True))
            self._until_step(command, output, 6)
            seconds, began_at = self._until_new_step(command, output)
            found[launcher] = {"seconds": seconds, "first_new_step": began_at}
        return found

    def _until_step(self, command: list[str], output: Path, step: int) -> None:
        """Run ``command`` until the trace has ``step`` steps, then SIGKILL everything."""
        job = self._start(command)
        try:
            while _trace_steps(output) < step:
                if job.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended early\n{self._said()}")
                time.sleep(0.02)
        finally:
            _kill(job)

    def _until_new_step(self, command: list[str], output: Path) -> tuple[float, int]:
        trace = output / "trace.jsonl"
        known = trace.read_text()
        began = time.perf_counter()
        job = self._start(command)
        try:
            # The trace is first cut back to the checkpoint, then grows.
            while True:
                text = trace.read_text()
                if text != known and text.endswith("\n"):
                    last = json.loads(text.splitlines()[-1])["step"]
                    if last > _checkpoint_step(output):
                        return time.perf_counter() - began, _checkpoint_step(output) + 1
                if job.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended early\n{self._said()}")
                time.sleep(0.02)
        finally:
            _kill(job)

    def _measure(
        self, config: str, variant: str, processes: int, batch: int, count: int, save_every: int
    ) -> list[dict[str, Any]]:
        zero = int(variant[4]) if variant.startswith("zero") else 0
        output = self._scratch / f"{config}-{variant}-{processes}-{save_every}"
        figures = output.with_suffix(".json")
        job = self._job(config, zero, batch, output, save_every, plain=False)
        job += [f"deepspeed.extra={REDUCED}"] if variant == "zero1-reduced" else []
        job += ["--count", str(self._steps or count), "--figures", str(figures)] + (["--ddp"] if variant == "ddp" else [])
        command = self._command("node launcher", processes, job)
        if processes == 1:
            command = ["taskset", "-c", "0", *command]
        if self._isolated:
            command = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command]
        started = self._start(command)
        try:
            started.wait(timeout=600)
        finally:
            _kill(started)
        if not figures.exists():
            raise SystemExit(f"{' '.join(command)}: no figures\n{self._said()}")
        rows: list[dict[str, Any]] = json.loads(figures.read_text())
        shutil.rmtree(output, ignore_errors=True)
        return rows

    def _job(self, config: str, zero: int, batch: int, output: Path, save_every: int, plain: bool) -> list[str]:
        script = REPOSITORY / "launch" / "pretrain.py" if plain else Path(__file__).resolve().with_name("training_worker.py")
        overrides = [f"data.path={self._data}", f"train.output={output}", f"train.global_batch={batch}", "train.passes=null"]
        overrides += ["train.steps=100000", "train.validate_every=0", "data.validation_items=0"]
        overrides += [f"train.checkpoint_every={save_every}", f"deepspeed.zero={zero}"]
        return [str(script), str(REPOSITORY / "configs" / "pretrain" / f"{config}.yaml"), *overrides]

    def _command(self, launcher: str, processes: int, job: list[str]) -> list[str]:
        if launcher == "deepspeed":
            from sleepfm.training.ranks.distributed import free_port

            found = str(Path(sys.executable).with_name("deepspeed"))
            return [found, "--num_gpus", str(processes), "--master_port", free_port(), "--log_level", "critical", *job]
        return [sys.executable, "-m", "sleepfm.training.launcher", str(processes), *job]

    @property
    def _log(self) -> Path:
        return self._scratch / "jobs.log"

    def _said(self) -> str:
        """The last lines of the jobs."""
        return self._log.read_text(errors="replace")[-3000:]

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self._scratch / 'mlflow.db'}",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with self._log.open("a") as log:
            return subprocess.Popen(
                command, cwd=self._scratch, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
            )


def _kill(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to everything that ``job`` started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def _trace_steps(output: Path) -> int:
    path = output / "trace.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _checkpoint_step(output: Path) -> int:
    return int((output / "checkpoints" / "latest").read_text().strip().rsplit("-", 1)[-1])


def make_data(scratch: Path, subjects: int) -> Path:
    """Shards of a small synthetic cohort."""
    source, shards = scratch / "cohort", scratch / "shards"
    synth = [
        str(Path(sys.executable).with_name("sleepfm")),
        "synth",
        str(source),
        "--subjects",
        str(subjects),
        "--hours",
        "1",
        "--seed",
        "1",
        "--clean",
    ]
    for words in (synth, [sys.executable, "-m", "shards", "build", str(source), str(shards), "--workers", "2"]):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="a built data set; default: a synthetic one, made first")
    parser.add_argument("--only", default="", metavar="CASE,...", help=", ".join(cases()))
    parser.add_argument("--subjects", type=int, default=24, help="nights of the synthetic one (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps that count (default: by the size)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, beside those of other cases")
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    # So that what was started is ended whatever ends this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = arguments.data.resolve() if arguments.data else make_data(scratch, arguments.subjects)
        bench = Bench(data, scratch, arguments.steps)
        for name in [word for word in arguments.only.split(",") if word] or list(cases()):
            result = cases()[name](bench)
            print(f"{name}: {json.dumps(result)}", flush=True)
            if arguments.json:
                known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
                known = {"machine": describe(), "cases": known.get("cases", {}) | {name: result}}
                arguments.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
