"""The start of a job: a signal ends it at any moment, and what it waits for is said, and not waited for without end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import CONFIG, TOY, environment, hear_signals, trace
from ports import free_port
from test_agreement import start

from sleepfm.errors import ConfigError, LostRankError, TrainingError
from sleepfm.training.preflight import host
from sleepfm.training.ranks import joining
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS

LAUNCH = Path(__file__).parents[2] / "launch"
SECOND = World(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("what", "number"),
    [("pretrain", signal.SIGTERM), ("probe", signal.SIGUSR1), ("finetune", signal.SIGINT), ("node", signal.SIGHUP)],
)
def test_a_signal_in_the_imports_has_the_documented_status(tmp_path: Path, what: str, number: signal.Signals) -> None:
    # As from a file system that is slow.
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    line = ["-m", "sleepfm.training.nodes"] if what == "node" else [str(LAUNCH / f"{what}.py")]
    own = environment()
    own["PYTHONPATH"] = f"{tmp_path}:{own.get('PYTHONPATH') or LAUNCH.parent}"
    job = subprocess.Popen(
        [sys.executable, *line, "x.yaml"],
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "importing\n"
    job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert (job.returncode, said) == (PREEMPTED_STATUS, f"stopped by {number.name}; the same command continues\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_leaves_when_it_is_asked_to(tmp_path: Path, rank: int) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    port = free_port()
    # Nobody but this test hears rank 1, and it says nothing.
    listener = socket.create_server(("127.0.0.1", port)) if rank == 1 else None
    job = start(tmp_path, rank, port)
    deadline = time.monotonic() + 120
    if listener is not None:
        listener.settimeout(120)
        listener.accept()
    else:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    # Until it stands still.
    time.sleep(1.0)
    asked = time.monotonic()
    job.terminate()
    _, said = job.communicate(timeout=30)
    assert (job.returncode, time.monotonic() - asked < 10) == (PREEMPTED_STATUS, True), said
    assert "stopped by SIGTERM" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def place(monkeypatch: pytest.MonkeyPatch, address: str, port: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)


def test_a_name_that_leads_nowhere_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joining, "_NAME_SECONDS", 0.5)
    place(monkeypatch, "no.such.host.invalid", "29871")
    with pytest.raises(TrainingError, match=r"MASTER_ADDR=no\.such\.host\.invalid: no host has this name \(.*\); give the name"):
        joining.join(World(1, 2, 0, 1))
    assert "MASTER_ADDR=no.such.host.invalid" in capsys.readouterr().err
    place(monkeypatch, "127.0.0.1", "many")
    with pytest.raises(ConfigError, match="MASTER_PORT='many'"):
        joining.join(SECOND)


def test_ranks_that_do_not_come_are_named_and_end_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joining, "_JOIN_SECONDS", 1.5)
    monkeypatch.setattr(joining, "_QUIET_SECONDS", 0.2)
    place(monkeypatch, "127.0.0.1", str(free_port()))
    with pytest.raises(LostRankError, match=r"rank 1 cannot join the others at 127\.0\.0\.1:\d+ \(Connection refused\)"):
        joining.join(World(1, 3, 0, 1))
    with pytest.raises(LostRankError, match=r"2 of 3 ranks did not connect within .*: 1, 2; "):
        joining.join(World(0, 3, 0, 1))
    said = capsys.readouterr().err
    assert re.search(r"^rank 1 waits for rank 0 at 127\.0\.0\.1:\d+, up to .* \(Connection refused\)$", said, re.MULTILINE)
    assert re.search(r"^rank 0 waits for rank 1, 2, up to ", said, re.MULTILINE)


def test_a_port_that_is_taken_is_waited_for_and_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        there = {"MASTER_PORT": str(number)}
        (fault,) = host.port(World(0, 2, 0, 2), there, 0.6)
        assert f"port {number}, where rank 0 listens: Address already in use for 1 s; give" in fault.text
        assert f"port {number}, where rank 0 listens: Address already in use; waiting up to 1 s" in capsys.readouterr().err
        assert host.port(SECOND, there, 60) == []
        began = time.monotonic()
        threading.Timer(0.7, taken.close).start()
        assert host.port(World(0, 2, 0, 2), there, 60) == []
    assert 0.5 < time.monotonic() - began < 20


HOLD = """
import sys
from pathlib import Path
from sleepfm.lock import only_writer

with only_writer(Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_start_waits_for_the_job_before_it_that_still_saves(tmp_path: Path) -> None:
    """Port and folder are the one's before, which gives the port back, then the folder."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    before = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert before.stdout is not None and before.stdout.readline() == "held\n"
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        jobs = [start(tmp_path, 0, port), start(tmp_path, 1, port)]
        stderr = jobs[0].stderr
        assert stderr is not None
        lines = iter(stderr.readline, "")
        waits = rf"port {port}, where rank 0 listens: Address already in use; waiting up to 60 s"
        assert any(re.match(waits, line) for line in lines)
    assert any(re.match(rf"run: process {before.pid} on host .* is writing here; waiting up to 60 s", line) for line in lines)
    before.communicate()
    for job in jobs:
        _, said = job.communicate(timeout=300)
        assert job.returncode == 0, said
    assert [row["step"] for row in trace(tmp_path)] == list(range(1, 13))


@pytest.mark.slow
def test_what_the_job_before_has_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    line = [sys.executable, str(TOY), "toy.yaml", "toy.wait_at=95", f"toy.wait_flag={tmp_path / 'go'}"]
    jobs, logs = [], [tmp_path / "first.log", tmp_path / "second.log"]

    def until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not reached():
            assert jobs[-1].poll() is None and time.monotonic() < deadline, logs[-1].read_text()
            time.sleep(0.1)

    for path in logs:
        with path.open("w") as log:
            jobs.append(subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=log, stderr=log))
        until((tmp_path / "run" / "trace.jsonl").exists)
    until(lambda: "is writing here" in logs[1].read_text())
    (tmp_path / "go").touch()
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    said = logs[1].read_text()
    assert "run: already trained (12 steps) and registered as toy:1; nothing to do" in said
