"""A job whose data is read by processes of its ranks: the same losses, saved when asked to leave, ended when one is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from launching import environment, family, hear_signals, trace
from made_nights import make_dataset, make_night

from sleepfm.errors import LostWorkerError
from sleepfm.paths import config_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"
FIXED = [
    *("data.path=set", "monitor=none", "registry.metric=val/loss", "registry.mode=min", "registry.every_best=false"),
    *("train.global_batch=8", "train.steps=40", "train.checkpoint_every=1000", "data.validation_items=8", "deepspeed.dtype=fp32"),
]


def line(*overrides: str) -> list[str]:
    config = str(config_root() / "pretrain" / "ecg-tiny.yaml")
    return [sys.executable, "-m", "sleepfm.training.launcher", "2", str(SCRIPT), config, *FIXED, *overrides]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line(*overrides), cwd=folder, env=environment(), capture_output=True, text=True, timeout=900)


def within(folder: Path) -> list[psutil.Process]:
    """The processes that work in ``folder``, orphans among them."""
    return [found for found in psutil.process_iter(["cwd"]) if found.info["cwd"] == str(folder)]


def readers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "sleepfm.data.worker" in process.cmdline()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the data set and ``undisturbed``, a run whose data a thread read."""
    made = tmp_path_factory.mktemp("job")
    overrides = ["split.pretrain=0.8", "split.label=0", "split.val=0.2", "split.test=0"]
    make_dataset(made / "set", [make_night(f"n{number}", 40, ("ECG",)) for number in range(16)], overrides=overrides)
    done = run(made, "train.output=undisturbed", "data.workers=0")
    assert done.returncode == 0, done.stderr
    return made


@contextmanager
def running(folder: Path, name: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run of that name with two processes a rank, some steps on; whatever is left of it in the end is killed."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        job = subprocess.Popen(
            line(f"train.output={name}", "data.workers=2"),
            cwd=folder,
            stdout=stream,
            stderr=stream,
            env=environment(),
            start_new_session=True,
            preexec_fn=hear_signals,
        )
    try:
        rows, deadline = folder / name / "trace.jsonl", time.monotonic() + 300
        while not rows.exists() or rows.read_text().count("\n") < 4:
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield job, log
        left = psutil.wait_procs(within(folder), timeout=30)[1]
        assert left == [], [process.cmdline() for process in left]
    finally:
        for process in within(folder):
            process.kill()
        job.wait()


def test_asked_to_leave_with_all_that_is_below_it_a_job_saves_and_goes_on(folder: Path) -> None:
    with running(folder, "asked") as (job, log):
        processes = family(job)
        assert len(readers(processes)) == 4
        for process in processes:
            process.send_signal(signal.SIGTERM)
        job.wait(timeout=60)
    assert "stopped by a signal; saved at step" in log.read_text()
    step = len(trace(folder, "asked"))
    assert step < 40
    # On as many processes as one likes.
    done = run(folder, "train.output=asked", "data.workers=1")
    assert done.returncode == 0, done.stderr
    assert trace(folder, "asked") == trace(folder, "undisturbed")


def test_a_process_that_is_killed_ends_the_job_which_goes_on_when_started_again(folder: Path) -> None:
    with running(folder, "killed") as (job, log):
        victim = readers(family(job))[-1]
        victim.kill()
        assert job.wait(timeout=120) == LostWorkerError.exit_status
    text = log.read_text()
    assert f"(pid {victim.pid}) was ended by SIGKILL" in text and "data.workers" in text, text
    done = run(folder, "train.output=killed", "data.workers=2")
    assert done.returncode == 0, done.stderr
    assert trace(folder, "killed") == trace(folder, "undisturbed")
