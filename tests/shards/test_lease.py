"""Who builds into a URL: one at a time, whoever dies, is stopped or is slow, and whatever the store loses of the answers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import lease
from shards.lease import Builder, only_builder
from shards.plan import Entry, ShardPlan
from shards.store import PART_BYTES, Store
from shards.task_folder import task_folder
from sleepfm.errors import BusyError, ConfigError, StorageError
from sleepfm.files import atomic_file, write_json
from sleepfm.lock import LOCK_FILE
from sleepfm.signals.files import location

# Holds the lease of a URL until its standard input ends; says when it has it, and when it has lost it.
HOLDER = """
import sys, threading, time
from shards.lease import only_builder
from sleepfm.errors import BusyError
from sleepfm.signals.files import location
with only_builder(location(sys.argv[1]), float(sys.argv[2]), print) as (builder, check):
    print("held", builder.token, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), done.append(1)), daemon=True).start()
    done = []
    while not done:
        time.sleep(0.05)
        try:
            check()
        except BusyError as error:
            print("lost", error, flush=True)
            break
"""


def url(name: str) -> Path:
    return location(f"s3://sleep/lease-{name}")


def hold(place: Path, seconds: float) -> tuple[subprocess.Popen[str], str]:
    """A process that has the lease, and its token."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    word, token = process.stdout.readline().split()
    assert word == "held"
    return process, token


def make_shard(folder: Path, content: bytes) -> None:
    """As far as a store is concerned: a tar that is written for a while, and a sidecar that knows its bytes."""
    with atomic_file(folder / "shards/shard-000000.tar") as file:
        for begin in range(0, len(content), PART_BYTES):
            file.write(content[begin : begin + PART_BYTES])
            file.flush()
            time.sleep(0.3 * (len(content) > PART_BYTES))
    write_json(folder / "shards/shard-000000.json", {"sha256": hashlib.sha256(content).hexdigest()})


def end(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0]


def test_a_second_builder_is_refused_while_the_first_lives_and_goes_on_after_it(s3):
    place, said = url("second"), []
    first, token = hold(place, 4)
    began = time.monotonic()
    busy = rf"{place}: process {first.pid} on host .* is building here"
    with pytest.raises(BusyError, match=busy), only_builder(place, 4, said.append):
        pytest.fail("two at once")
    assert time.monotonic() - began < 4, "a living one is told from its next renewals"
    assert len(said) == 1 and "continuing when its lease runs out, in 4 s" in said[0]
    end(first)
    with only_builder(place, 4, said.append) as (builder, check):
        check()
        builder.check()
        with pytest.raises(BusyError, match=f"another|process {os.getpid()}"):
            Builder(place, token).check()
    assert len(said) == 1
    # One object is left, so that numbers only grow.
    assert len(s3.names("lease-second/.lease")) == 1


def test_the_lease_of_one_that_was_killed_runs_out(s3):
    place, said = url("killed"), []
    first, _ = hold(place, 3)
    first.kill()
    first.wait()
    began = time.monotonic()
    with only_builder(place, 3, said.append):
        assert time.monotonic() - began >= 3 and len(said) == 1


@pytest.mark.slow
def test_a_renewal_that_arrives_after_its_builder_was_killed_is_no_sign_of_life(s3):
    place = url("on-its-way")
    first, _ = hold(place, 2)
    first.kill()
    first.wait()
    number, record = lease._highest(Store(place))
    arrived = threading.Timer(0.7, lambda: Store(place).put(f".lease/{number + 1:08d}", json.dumps(record).encode()))
    arrived.start()
    began = time.monotonic()
    with only_builder(place, 2, print):
        assert time.monotonic() - began >= 2.7 and not arrived.is_alive()


def test_one_that_was_stopped_for_a_while_writes_no_more(s3, tmp_path):
    """As a suspended machine, or one that lost its network: it believes that it builds until it looks."""
    place = url("stopped")
    first, token = hold(place, 2)
    first.send_signal(signal.SIGSTOP)
    with only_builder(place, 2, print) as (second, _):
        first.send_signal(signal.SIGCONT)
        assert first.stdout is not None and "lost" in first.stdout.readline()
        end(first)
        # A task of the first that is at its end only now.
        shard = ShardPlan("shard-000000.tar", (Entry("a.edf", 1, "a"),))
        with pytest.raises(BusyError, match="has lost its lease"), task_folder(place, shard.name, Builder(place, token)):
            pytest.fail("it must not begin")
        Store(place).put("shards/shard-000000.tar", b"of the second")
        with task_folder(place, shard.name, second) as folder:
            make_shard(folder, b"of the second")
        assert s3.contents("lease-stopped/shards")["shard-000000.tar"] == b"of the second"


@pytest.mark.parametrize("content", [b"of the first", b"x" * 3 * PART_BYTES], ids=["small", "in parts"])
def test_a_task_that_lags_behind_puts_nothing(s3, content):
    place = url(f"lagging-{len(content)}")
    with only_builder(place, 2, print) as (first, _):
        lagging = task_folder(place, "shard-000000.tar", first)
        folder = lagging.__enter__()
        make_shard(folder, content)
    with only_builder(place, 2, print):
        with pytest.raises(BusyError):
            lagging.__exit__(None, None, None)
        assert s3.names(f"lease-lagging-{len(content)}/shards") == []
        assert s3.unfinished_uploads() == []


def test_a_task_makes_anew_what_another_has_left(s3):
    place = url("left")
    with only_builder(place, 5, print) as (builder, _):
        Store(place).put("shards/shard-000000.tar", b"other bytes")
        with task_folder(place, "shard-000000.tar", builder) as folder:
            make_shard(folder, b"these bytes")
        assert s3.contents("lease-left/shards")["shard-000000.tar"] == b"these bytes"


@pytest.mark.parametrize(("content", "further"), [(b"x", 0), (b"x" * 3 * PART_BYTES, 4)], ids=["small", "in parts"])
def test_a_shard_takes_few_requests(s3, content, further):
    """A store is as far away as its answers are late: each request that is not needed counts for every shard."""
    place = url(f"few-{len(content)}")
    with only_builder(place, 600, print) as (builder, _):
        asked = len(s3.requests())
        with task_folder(place, "shard-000000.tar", builder) as folder:
            make_shard(folder, content)
        lines = [line for line in s3.requests()[asked:] if f"/lease-few-{len(content)}" in line.replace("prefix=", "/")]
    # Whose the lease is, once read and twice seen; what is there of the shard; the tar and its size; the sidecar.
    assert len(lines) == 8 + further, "\n".join(lines)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))])
def test_of_many_at_once_one_builds_at_a_time_though_answers_are_lost(s3, seed):
    """Eight threads, as eight machines would; answers of every kind of request are lost or come late."""
    place, at_work, most = url(f"many-{seed}"), [], []

    def work(number: int) -> int:
        try:
            with only_builder(place, 20, lambda said: None) as (builder, check):
                at_work.append(number)
                most.append(len(at_work))
                time.sleep(0.1)
                check()
                builder.check()
                at_work.remove(number)
        except BusyError:
            return 0
        return 1

    with s3.faults(errors=0.03, lost=0.1, delay_s=0.02, seed=seed), ThreadPoolExecutor(8) as pool:
        worked = sum(pool.map(work, range(8)))
    assert worked >= 1 and set(most) == {1} and not at_work


def test_a_store_that_knows_no_condition_is_refused(s3):
    said = r"If-None-Match.*Build into a folder and copy it there"
    with s3.faults(conditions=False), pytest.raises(ConfigError, match=said), only_builder(url("none"), 5, print):
        pytest.fail("two could build at once")
    with pytest.raises(ConfigError, match=said), only_builder(location("memory://x"), 5, print):
        pytest.fail("two could build at once")


def test_one_that_looked_long_ago_does_not_build_beside_one_that_came_since(s3, monkeypatch):
    """It saw the lowest number free; others have gone on to the third and removed the second, which it can put again."""
    place, found = url("late"), lease._highest
    with only_builder(place, 1, print) as (_, check):
        deadline = time.monotonic() + 60
        while "00000003" not in (names := s3.names("lease-late/.lease")) or "00000002" in names:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        old = [(1, {**found(Store(place))[1], "released": True})]
        monkeypatch.setattr(lease, "_highest", lambda store: old.pop() if old else found(store))
        with pytest.raises(BusyError, match="is building here"), only_builder(place, 1, print):
            pytest.fail("two at once")
        check()


def test_what_is_no_lease_is_left_alone(s3):
    s3.put("lease-foreign/.lease/00000007", b"mine")
    with (
        pytest.raises(StorageError, match=r"lease-foreign/.lease/00000007: is not a lease"),
        only_builder(url("foreign"), 5, print),
    ):
        pytest.fail("not ours")
    assert s3.contents("lease-foreign") == {".lease/00000007": b"mine"}


def test_a_store_that_is_away_for_the_time_of_a_lease_ends_the_build(s3):
    with only_builder(url("away"), 1, print) as (_, check):
        check()
        with s3.faults(errors=1.0):
            time.sleep(1.2)
        time.sleep(0.1)
        with pytest.raises(BusyError, match="could not be renewed in time"):
            check()


@pytest.mark.slow
def test_a_lease_is_renewed_while_its_builder_works(s3):
    place = url("long")
    with only_builder(place, 1, print) as (builder, check):
        numbers = set()
        for _ in range(15):
            time.sleep(0.2)
            check()
            numbers |= set(s3.names("lease-long/.lease"))
            assert len(s3.names("lease-long/.lease")) <= 3
        builder.check()
    assert len(numbers) >= 5
    (last,) = s3.contents("lease-long/.lease").values()
    assert json.loads(last)["released"]
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


@pytest.mark.slow
def test_slow_answers_do_not_make_renewals_rarer(s3):
    """A renewal takes three requests: here nearly as long as the time between two of them."""
    with only_builder(url("slow"), 4, print) as (_, check):
        with s3.faults(delay_s=0.6):
            time.sleep(12)
            check()
        (*_, last) = sorted(s3.names("lease-slow/.lease"))
    # One a second; with that second after the end of each it would be six.
    assert int(last.rsplit("/")[-1]) >= 9


def test_a_task_on_a_host_with_another_folder_of_that_name_ends(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    with only_builder(here, 60, print) as (builder, check):
        check()
        builder.check()
        there.mkdir()
        for content in (None, "", "{}"):
            if content is not None:
                (there / LOCK_FILE).write_text(content)
            with pytest.raises(StorageError, match="this is not the folder that the build writes into; give a URL"):
                Builder(there, builder.token).check()
