"""Builds that are asked to end: one line, the status of the signal, and what is finished is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

TOLD = "what is finished is kept, and the same command continues"


def arguments(cohort: Path, out: Path) -> list[str]:
    return ["build", str(cohort), str(out), "--cohort", "shhs1", "recordings_per_shard=1"]


def begun(words: list[str], environment: Mapping[str, str], out: Path) -> subprocess.Popen[str]:
    """A build of which one shard is finished and others are not, in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shards", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(out.glob("shards/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def finished(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("shards/*.tar")}


def check_end(process: subprocess.Popen[str], number: int, out: Path) -> dict[str, bytes]:
    """It has ended as it is to end; the shards that it has finished."""
    _, stderr = process.communicate(timeout=120)
    assert stderr.splitlines() == [f"interrupted by {signal.Signals(number).name}; {TOLD}"]
    assert process.returncode == 128 + number
    assert not (out / "dataset.json").exists()
    kept = finished(out)
    assert kept
    return kept


def test_a_build_on_a_cluster_that_is_asked_to_end_says_one_line_and_goes_on_later(
    cohort, tmp_path, connection, run, shards_environment
):
    out = tmp_path / "out"
    process = begun(arguments(cohort, out), shards_environment(connection.address), out)
    process.terminate()
    kept = check_end(process, signal.SIGTERM, out)
    result = run(arguments(cohort, out))
    assert result.returncode == 0 and "finished already" in result.stdout, result.stdout + result.stderr
    assert finished(out).items() >= kept.items()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True], ids=["the command", "its terminal"])
def test_nothing_is_left_of_the_cluster_of_a_build_that_is_asked_to_end(
    cohort: Path,
    tmp_path: Path,
    shards_environment: Callable[[str | None], dict[str, str]],
    number: int,
    whole_group: bool,
) -> None:
    """A terminal sends Ctrl-C to all that it has started."""
    out = tmp_path / "out"
    words = [*arguments(cohort, out), "--workers", "1"]
    process = begun(words, shards_environment(None), out)
    started = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    kept = check_end(process, number, out)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    command = [sys.executable, "-m", "shards", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=shards_environment(None))
    assert done.returncode == 0 and "finished already" in done.stdout, done.stderr
    assert finished(out).items() >= kept.items()
