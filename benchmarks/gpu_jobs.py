"""Parts of ``gpu.py`` that start jobs: a kill and a resume of a real one, and two processes on one device."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_parts import REPOSITORY, Options, Row

# A rank of the two on one device: everybody's number summed by everybody.
_RANK = """
import os, sys, torch, torch.distributed as dist
kind = sys.argv[1]
device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count()) if kind == "nccl" else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group(kind)
total = torch.full((1024,), float(dist.get_rank() + 1), device=device)
dist.all_reduce(total)
print(total.mean().item(), device, flush=True)
dist.destroy_process_group()
"""


def resume(options: Options) -> Iterator[Row]:
    """NeuroNet under DeepSpeed, killed between checkpoints and started again: losses of the steps that were taken twice."""
    run, every = options.scratch / "resumed", 4 if options.rehearse else 50
    command = _job(options, run, every)
    began = time.perf_counter()
    first = _until(command, run, 2 * every + every // 2, "kill")
    yield {"what": "first start", "steps": len(first), "seconds": time.perf_counter() - began}
    killed = max(first)
    began = time.perf_counter()
    known = (run / "trace.jsonl").read_text()
    second = _until(command, run, killed, "leave", known)
    checkpoint = min(step for step in second if step not in first or second[step] != first[step]) - 1
    repeated = [step for step in second if checkpoint < step <= killed]
    if not repeated:
        raise SystemExit(f"no step was taken twice: killed at {killed}, then {min(second)} to {max(second)}")
    off = [abs(second[step]["loss"] - first[step]["loss"]) / abs(first[step]["loss"]) for step in repeated]
    yield {
        "what": "killed and resumed",
        "killed_at": killed,
        "resumed_from": checkpoint,
        "repeated_steps": len(repeated),
        "bit_equal": max(off) == 0,
        "largest_relative_difference": max(off),
        "seconds": time.perf_counter() - began,
    }
    settled = [row for step, row in first.items() if step > 3]
    yield {"what": f"EEG {options.size} under DeepSpeed, bf16, ZeRO 1", "steps": len(settled)} | {
        key: statistics.median(row[key] for row in settled) for key in ("epochs_per_s", "data_wait")
    }
    if max(off) > (0 if options.rehearse else 1e-3):
        raise SystemExit(f"the resumed run has other losses: up to {max(off):.3g} of them")


def _job(options: Options, run: Path, every: int) -> list[str]:
    recipe = REPOSITORY / "configs" / "pretrain" / f"eeg-{options.size}.yaml"
    settings = [f"data.path={options.data}", f"train.output={run}", "train.passes=null", "train.steps=1000000"]
    settings += [f"train.checkpoint_every={every}", "train.validate_every=0", "monitor=none"]
    settings += ["registry.metric=val/loss", "registry.mode=min", "deepspeed.dtype=bf16", "data.validation_items=64"]
    settings += ["train.global_batch=8"] if options.rehearse else []
    launcher = [sys.executable, "-m", "sleepfm.training.launcher", "1", str(REPOSITORY / "launch" / "pretrain.py"), str(recipe)]
    return [*launcher, *settings]


def _until(command: list[str], run: Path, step: int, end: str, known: str = "") -> dict[int, dict[str, Any]]:
    """Rows of the trace by step, once ``step`` is in it; then the job is killed, or asked to leave.

    ``known`` is the trace before, which a resumed job first cuts back to its checkpoint.
    """
    trace = run / "trace.jsonl"
    with (run.parent / "job.log").open("ab") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while True:
            text = trace.read_text() if trace.exists() else ""
            rows = {row["step"]: row for row in map(json.loads, (line for line in text.splitlines(True) if line.endswith("\n")))}
            if text != known and rows and max(rows) >= step:
                return rows
            if job.poll() is not None:
                said = (run.parent / "job.log").read_text(errors="replace")[-1200:]
                raise SystemExit(f"the job ended with {job.returncode}: {said}")
            time.sleep(0.02)
    finally:
        if end == "leave":
            job.send_signal(signal.SIGTERM)
            try:
                job.wait(30)
            except subprocess.TimeoutExpired:
                _kill(job)
        else:
            _kill(job)


def _kill(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a launcher and everything below it, all at once."""
    import psutil

    found = [psutil.Process(job.pid)] if job.poll() is None else []
    for process in [*(child for parent in found for child in parent.children(recursive=True)), *found]:
        process.kill()
    job.wait()


def processes(options: Options) -> Iterator[Row]:
    """Two processes that add up numbers, on one device where there is one: NCCL may refuse that, and says so."""
    from sleepfm.training.ranks.distributed import free_port

    kind, port = "gloo" if options.rehearse else "nccl", free_port()
    what = f"two processes under {kind.upper() if kind == 'nccl' else kind}"
    ranks = []
    for rank in range(2):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command, pipe = [sys.executable, "-c", _RANK, kind], subprocess.PIPE
        ranks.append(subprocess.Popen(command, env=os.environ | variables, text=True, stdout=pipe, stderr=pipe))
    said = [rank.communicate() for rank in ranks]
    refusals = [line for _, errors in said for line in errors.splitlines() if "Duplicate GPU" in line]
    if refusals:
        yield {"what": f"{what} on one device", "refused": refusals[0].strip()}
        return
    if any(rank.returncode for rank in ranks):
        raise SystemExit("\n".join(errors[-700:] for _, errors in said))
    found = [out.split() for out, _ in said]
    if [float(total) for total, _ in found] != [3.0, 3.0]:
        raise SystemExit(f"1 + 2 is 3, found {found}")
    yield {"what": what, "devices": [device for _, device in found], "sum": 3.0}
