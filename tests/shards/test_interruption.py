"""Builds that are asked to end: one line, the status of the signal, and what is finished is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

TOLD = "what is finished is kept, and the same command goes on"


def arguments(cohort: Path, out: Path) -> list[str]:
    return ["build", str(cohort), str(out), "--cohort", "shhs1", "recordings_per_shard=1", "--workers", "1"]


def await_first(process: subprocess.Popen[str], out: Path) -> None:
    """Until one shard is finished and others are not."""
    deadline = time.monotonic() + 240
    while not list(out.glob("shards/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["the command", "its terminal"])
def test_a_build_that_is_asked_to_end_says_one_line_and_goes_on_later(
    cohort: Path,
    tmp_path: Path,
    shards_environment: Callable[[str | None], dict[str, str]],
    number: int,
    whole_group: bool,
) -> None:
    """With a cluster of its own, of which nothing is left behind; a terminal sends Ctrl-C to all that it has started."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "shards", *arguments(cohort, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=shards_environment(None),
        start_new_session=True,
    )
    await_first(process, out)
    started = descendants(process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert stderr.splitlines() == [f"interrupted by {signal.Signals(number).name}; {TOLD}"]
    assert process.returncode == 128 + number
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    assert not (out / "dataset.json").exists()
    kept = {path.name: path.read_bytes() for path in out.glob("shards/*.tar")}
    assert kept
    done = subprocess.run(
        [sys.executable, "-m", "shards", *arguments(cohort, out)], capture_output=True, text=True, env=shards_environment(None)
    )
    assert done.returncode == 0 and "shards are finished already" in done.stdout, done.stderr
    assert all((out / "shards" / name).read_bytes() == content for name, content in kept.items())
