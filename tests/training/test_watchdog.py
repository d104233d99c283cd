"""A job in which nothing moves ends, and says who is missing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from launching import CONFIG, alone, command, environment, launch

from sleepfm.training.ranks.watchdog import Beat, missing

pytestmark = pytest.mark.timeout(1800)


def beat(number: int, count: int, collective: bool = True) -> Beat:
    return Beat(number, count, "host", f"at place {count}", "code.py:1 work", collective, "")


def test_who_is_missing_is_told_from_two_looks_at_all_ranks() -> None:
    first = [beat(1, 7), beat(1, 7), beat(1, 6)]
    second = [beat(2, 7), beat(2, 7), beat(2, 6)]
    assert missing(first, second).startswith("the others wait for rank 2 (on host, at place 6")
    # Rank 1 has written nothing new: its process is stopped, or its host is gone.
    assert missing(first, [beat(2, 7), beat(1, 7), beat(2, 6)]).startswith("nothing is heard of rank 1 (")
    assert missing(first, [beat(2, 7), None, beat(2, 6)]).startswith("nothing is heard of rank 1 (which never wrote)")
    # All at one place, all but one of them in a collective.
    even = [beat(1, 7), beat(1, 7, collective=False), beat(1, 7)]
    assert missing(even, [beat(2, 7), beat(2, 7, collective=False), beat(2, 7)]).startswith("the others wait for rank 1 (")
    assert missing(first[:2], second[:2]).startswith("all ranks have arrived; rank 0 (")
    assert missing(None, None).startswith("rank 0 does not answer")
    many = [beat(2, 7), *[beat(2, 6)] * 20]
    assert missing([beat(1, 7), *[beat(1, 6)] * 20], many).endswith(", 12 more")


@pytest.mark.slow
def test_a_rank_that_does_not_arrive_is_named(tmp_path: Path) -> None:
    # Item 50 is of the seventh step, on the second rank.
    done = launch(tmp_path, 2, "toy.stall_at=50", "train.stall_s=30")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error (rank 0): stalled, no progress for ")]
    assert len(said) == 1
    assert "the others wait for rank 1 (" in said[0]
    assert "in the forward pass of step 7, in toy.py:" in said[0]
    assert "the same command goes on from the last checkpoint" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_is_named(tmp_path: Path, stopped: int) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    line = command(2, "train.steps=1000", "toy.seconds=0.05", "train.stall_s=30")
    job = subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    path, deadline = tmp_path / "run" / "trace.jsonl", time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < 6:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    word = f"--local_rank={stopped}"
    victim = next(p for p in psutil.Process(job.pid).children(recursive=True) if word in p.cmdline())
    victim.send_signal(signal.SIGSTOP)
    try:
        _, stderr = job.communicate(timeout=600)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    assert job.returncode == 1
    expected = "error (rank 0): stalled" if stopped else "error (rank 1): stalled"
    assert expected in stderr
    assert ("nothing is heard of rank 1 (" if stopped else "rank 0 does not answer") in stderr


@pytest.mark.slow
def test_a_process_alone_ends_too(tmp_path: Path) -> None:
    done = alone(tmp_path, "toy.stall_at=50", "train.stall_s=30")
    assert done.returncode == 1
    assert "rank 0 is still on " in done.stderr
    assert "in the forward pass of step 7, in toy.py:" in done.stderr
