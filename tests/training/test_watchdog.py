"""A job in which nothing moves ends, and says who is missing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from launching import CONFIG, alone, command, environment, launch

from sleepfm.errors import LostRankError
from sleepfm.training.ranks.watchdog import Beat, _News, missing

pytestmark = pytest.mark.timeout(1800)


def beat(number: int, count: int, collective: bool = True) -> Beat:
    return Beat(number, count, count, "host", f"at place {count}", "code.py:1 work", collective, "")


def test_who_is_missing_is_told_from_two_looks_at_all_ranks() -> None:
    first = [beat(1, 7), beat(1, 7), beat(1, 6)]
    second = [beat(2, 7), beat(2, 7), beat(2, 6)]
    assert missing(first, second).startswith("the others wait for rank 2 (on host, at place 6")
    # Rank 1 has written nothing new: its process is stopped, or its host is gone.
    assert missing(first, [beat(2, 7), beat(1, 7), beat(2, 6)]).startswith("no sign of life from rank 1 (")
    assert missing(first, [beat(2, 7), None, beat(2, 6)]).startswith("no sign of life from rank 1 (which has never reported)")
    # All at one place, all but one of them in a collective.
    even = [beat(1, 7), beat(1, 7, collective=False), beat(1, 7)]
    assert missing(even, [beat(2, 7), beat(2, 7, collective=False), beat(2, 7)]).startswith("the others wait for rank 1 (")
    assert missing(first[:2], second[:2]).startswith("all ranks are at the same place; rank 0 (")
    assert missing(None, None).startswith("rank 0 does not answer")
    many = [beat(2, 7), *[beat(2, 6)] * 20]
    assert missing([beat(1, 7), *[beat(1, 6)] * 20], many).endswith(", 12 more")


def test_rank_0_tells_silence_from_a_collective_that_hangs() -> None:
    news = _News(3, 0.0)
    news.take([beat(1, 7), beat(1, 7), None], 5.0)
    assert news.silent(15.0, 20.0) == ""
    # Rank 2 never wrote, and rank 1 nothing new.
    news.take([beat(2, 7), beat(1, 7), None], 15.0)
    assert news.silent(21.0, 20.0).startswith("no sign of life from rank 2 (which has never reported) for 21 s")
    assert "rank 1 (on host, at place 7" in news.silent(26.0, 20.0)
    assert news.hanging(7, 60.0) == ""
    news.take([beat(3, 7), beat(2, 7), beat(1, 7)], 30.0)
    assert news.silent(31.0, 20.0) == ""
    assert news.hanging(7, 60.0).startswith(
        "stalled, a collective hangs: all ranks have been at the same place for 60 s; rank 0 ("
    )
    # A rank is elsewhere, or all of them wait for storage.
    assert news.hanging(8, 60.0) == ""
    news.take([replace(beat(4, 7), place="waiting for data of step 3")] * 3, 35.0)
    assert news.hanging(7, 60.0) == ""


@pytest.mark.slow
def test_a_rank_that_does_not_arrive_is_named(tmp_path: Path) -> None:
    # Item 50 is of the seventh step, on the second rank.
    done = launch(tmp_path, 2, "toy.stall_at=50", "train.stall_s=30")
    assert done.returncode == LostRankError.exit_status
    said = [line for line in done.stderr.splitlines() if line.startswith("error (rank 0): stalled, no progress for ")]
    assert len(said) == 1
    assert "the others wait for rank 1 (" in said[0]
    assert "in the forward pass of step 7, in toy.py:" in said[0]
    assert "the same command continues from the last save" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_is_named_within_seconds(tmp_path: Path, stopped: int) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    line = command(2, "train.steps=1000", "toy.seconds=0.05", "train.silent_s=6")
    job = subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    path, deadline = tmp_path / "run" / "trace.jsonl", time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < 6:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ranks = psutil.Process(job.pid).children(recursive=True)
    victim, other = (next(p for p in ranks if f"--local_rank={rank}" in p.cmdline()) for rank in (stopped, 1 - stopped))
    victim.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        # DeepSpeed's launcher gives the stopped one another 30 s.
        assert psutil.wait_procs([other], timeout=20)[1] == []
        print(f"rank {stopped} stopped, the other ended after {time.monotonic() - began:.1f} s")
        _, stderr = job.communicate(timeout=600)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    assert job.returncode == LostRankError.exit_status
    assert f"error (rank {1 - stopped}): no sign of life from rank {stopped}" in stderr
    # Where its threads are.
    assert "most recent call first" in stderr


@pytest.mark.slow
def test_a_collective_that_hangs_is_seen_long_before_the_limit_of_a_stall(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(tmp_path, 2, "toy.hang_at=50", "train.silent_s=4", node=True)
    assert done.returncode == LostRankError.exit_status
    assert "error (rank 0): stalled, a collective hangs: all ranks have been at the same place for " in done.stderr
    assert "in the forward pass of step 7, in " in done.stderr
    assert time.monotonic() - began < 90


@pytest.mark.slow
def test_an_error_of_nccl_is_a_lost_rank(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, "toy.fail_at=50", node=True)
    assert done.returncode == LostRankError.exit_status
    assert "lost contact with another rank" in done.stderr
    assert "Traceback" not in done.stderr


# Rank 0 takes 36 s for its half of the items, rank 1 none: it waits in a collective for longer than its limit and 15 s.
LONG_VALIDATION = ("toy.validate_s=[3,3,3,3,3,3,3,3,3,3,3,3,0,0,0,0,0,0,0,0,0,0,0,0]", "train.stall_s=8", "train.steps=5")


@pytest.mark.slow
def test_a_long_phase_that_goes_on_is_left_alone_also_by_those_who_wait(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(tmp_path, 2, *LONG_VALIDATION, node=True)
    assert done.returncode == 0, done.stderr
    assert "stalled" not in done.stderr and time.monotonic() - began > 36


@pytest.mark.slow
def test_an_embedding_before_the_first_step_may_take_longer_than_the_limit_of_a_stall(tmp_path: Path) -> None:
    began = time.monotonic()
    embedding = LONG_VALIDATION[0].replace("validate_s", "embed_s")
    done = launch(tmp_path, 2, embedding, *LONG_VALIDATION[1:], node=True)
    assert done.returncode == 0, done.stderr
    assert "stalled" not in done.stderr and time.monotonic() - began > 36


@pytest.mark.slow
def test_an_embedding_that_hangs_ends_the_job(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(tmp_path, 2, "toy.embed_s=[1,1]", "toy.hang_in_embedding=true", "train.stall_s=8", node=True)
    assert done.returncode == LostRankError.exit_status
    assert "stalled, no progress for " in done.stderr and " starting (embedding, 1 of 1)" in done.stderr
    assert "the others wait for rank 0 (" in done.stderr and ", in toy.py:" in done.stderr
    assert time.monotonic() - began < 90


@pytest.mark.slow
def test_a_phase_that_hangs_ends_after_the_stated_time(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(tmp_path, 2, "toy.hang_in_validation=true", "train.stall_s=8", node=True)
    assert done.returncode == LostRankError.exit_status
    assert "stalled, no progress for " in done.stderr and " validating step 5" in done.stderr
    assert "the others wait for rank 0 (" in done.stderr and ", in toy.py:" in done.stderr
    assert time.monotonic() - began < 90


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
def test_alone_too_what_goes_on_is_left_and_what_hangs_is_ended(tmp_path: Path, hangs: bool) -> None:
    tail = f"toy.hang_in_validation={str(hangs).lower()}"
    done = alone(tmp_path, "toy.validate_s=[2,2,2,2,2,2]", "train.stall_s=8", "train.steps=5", tail)
    assert done.returncode == (LostRankError.exit_status if hangs else 0), done.stderr
    assert ("s (train.stall_s) validating step 5 (items, 6 of 6)" in done.stderr) == hangs


@pytest.mark.slow
def test_a_process_alone_ends_too(tmp_path: Path) -> None:
    done = alone(tmp_path, "toy.stall_at=50", "train.stall_s=30")
    assert done.returncode == LostRankError.exit_status
    assert "rank 0 is still on " in done.stderr
    assert "in the forward pass of step 7, in toy.py:" in done.stderr
