"""A signal to any process of a job ends all of it, saved; the same command, started at once on the same port, goes on."""

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
from launching import CONFIG, TOY, command, environment, family, hear_signals, launch, trace
from ports import free_port

from sleepfm.training.ranks.preemption import PREEMPTED_STATUS

pytestmark = pytest.mark.timeout(1200)

LONG = ("train.steps=30", "toy.seconds=0.1")
# DeepSpeed's own command and its launcher do not pass every signal on; 130 and 143 are what a shell says of them.
DIED = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 138, signal.SIGKILL: 137}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder, 2, *LONG, node=True)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def running(folder: Path, line: list[str], name: str) -> Iterator[subprocess.Popen[bytes]]:
    """``line`` as a job of its own; whatever is left of it in the end is killed."""
    (folder / "toy.yaml").write_text(CONFIG)
    log = (folder / f"{name}.log").open("a")
    job = subprocess.Popen(
        line, cwd=folder, stdout=log, stderr=log, env=environment(), start_new_session=True, preexec_fn=hear_signals
    )
    try:
        yield job
    finally:
        for process in within(folder):
            process.kill()
        job.wait()


def within(folder: Path) -> list[psutil.Process]:
    """The processes that work in ``folder``, orphans among them."""
    return [found for found in psutil.process_iter(["cwd"]) if found.info["cwd"] == str(folder)]


def has_ended(process: psutil.Process) -> bool:
    """Also where the system's first process, whose child an orphan becomes, has not taken note of it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def reach(folder: Path, run: str, step: int, job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of ``job`` once it has done ``step`` steps: the command, DeepSpeed's launcher, rank 0 and rank 1."""
    path, deadline = folder / run / "trace.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < step:
        assert job.poll() is None and time.monotonic() < deadline, (folder / f"{run}.log").read_text()
        time.sleep(0.02)
    found = family(job)
    ranks = [next(p for p in found if f"--local_rank={rank}" in p.cmdline()) for rank in range(2)]
    launcher = ranks[0].parent()
    assert launcher is not None
    return [found[0], launcher, *ranks]


def assert_saved_and_gone(folder: Path, run: str, processes: list[psutil.Process]) -> None:
    left = psutil.wait_procs(processes, timeout=40)[1]
    assert left == [], [process.cmdline() for process in left]
    step = trace(folder, run)[-1]["step"]
    assert step < 30
    assert (folder / run / "checkpoints" / f"step-{step:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "number"),
    [
        (who, number)
        for who, numbers in {
            "command": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL],
            "launcher": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL],
            "rank 1": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1],
            "all": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
        }.items()
        for number in numbers
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_ends_all_of_the_job_saved(undisturbed: Path, who: str, number: signal.Signals) -> None:
    run = f"{who.replace(' ', '')}-{number.name}"
    line = command(2, *LONG, f"train.output={run}")
    with running(undisturbed, line, run) as job:
        processes = reach(undisturbed, run, 6, job)
        aims = {"command": processes[:1], "launcher": processes[1:2], "rank 1": processes[3:], "all": processes}
        for process in aims[who]:
            process.send_signal(number)
        status = job.wait(timeout=60)
        if who == "command":
            # At once, while the ranks of before still hold the port.
            again = subprocess.run(line, cwd=undisturbed, env=environment(), capture_output=True, text=True, timeout=300)
            assert again.returncode == 0, again.stderr
            assert trace(undisturbed, run) == trace(undisturbed)
            assert psutil.wait_procs(processes, timeout=1)[1] == []
            assert status in (-number, DIED[number])
        else:
            assert_saved_and_gone(undisturbed, run, processes)
            # As the table of docs/clusters.md says. The command dies of a signal of its own, also beside all others; it takes a
            # launcher that died of one for one that has ended well.
            documented = {
                "rank 1": {PREEMPTED_STATUS},
                "all": {-number, DIED[number]},
                "launcher": {1} if number in (signal.SIGTERM, signal.SIGINT) else {0},
            }
            assert status in documented[who]
            finish = launch(undisturbed, 2, *LONG, f"train.output={run}", node=True)
            assert finish.returncode == 0, finish.stderr
            assert trace(undisturbed, run) == trace(undisturbed)


@pytest.mark.slow
def test_ctrl_c_to_a_job_of_sleepfm_gives_the_status_that_says_it_can_be_continued(tmp_path: Path) -> None:
    """``sleepfm pretrain`` becomes this launcher; a terminal sends Ctrl-C to it and to its processes."""
    line = [sys.executable, "-m", "sleepfm.training.launcher", "2", str(TOY), "toy.yaml", *LONG]
    with running(tmp_path, line, "run") as job:
        processes = reach(tmp_path, "run", 6, job)[1:]
        for process in processes:
            process.send_signal(signal.SIGINT)
        assert job.wait(timeout=60) == PREEMPTED_STATUS, (tmp_path / "run.log").read_text()
        assert_saved_and_gone(tmp_path, "run", processes[1:])
        finish = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        assert finish.returncode == 0 and finish.stdout.count("run: continues from step ") == 1, finish.stdout + finish.stderr


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["command", "sleepfm's launcher", "a process alone"])
def test_a_job_whose_output_nobody_reads_any_more_saves(undisturbed: Path, starts: str) -> None:
    """A terminal or an ssh connection that was closed, or the end of ``| tee``: a broken pipe."""
    run = f"unread-{len(starts)}"
    toy = [str(TOY), "toy.yaml", *LONG, f"train.output={run}"]
    processes = 1 if starts == "a process alone" else 2
    line = {
        "command": command(2, *LONG, f"train.output={run}"),
        "sleepfm's launcher": [sys.executable, "-m", "sleepfm.training.launcher", "2", *toy],
        "a process alone": [sys.executable, *toy],
    }[starts]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=undisturbed, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout is not None
        while not (said := job.stdout.readline()).startswith("toy 5/30"):
            assert said, job.wait()
        job.stdout.close()
        status = job.wait(timeout=120)
    left = trace(undisturbed, run)[-1]["step"]
    assert left < 30 and (undisturbed / run / "checkpoints" / f"step-{left:08d}").is_dir()
    assert status == PREEMPTED_STATUS
    finish = launch(undisturbed, processes, *LONG, f"train.output={run}", node=True)
    assert finish.returncode == 0, finish.stderr
    assert trace(undisturbed, run)[-1]["step"] == 30
    if processes == 2:
        assert trace(undisturbed, run) == trace(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["command", "sleepfm's launcher", "node.sh"])
def test_a_job_whose_log_has_no_room_trains_to_its_end(undisturbed: Path, starts: str) -> None:
    run = f"full-{len(starts)}"
    toy = [str(TOY), "toy.yaml", *LONG, f"train.output={run}"]
    line = {
        "command": command(2, *LONG, f"train.output={run}"),
        "sleepfm's launcher": [sys.executable, "-m", "sleepfm.training.launcher", "2", *toy],
        "node.sh": [sys.executable, "-m", "sleepfm.training.nodes", *toy],
    }[starts]
    node = {"NODES": "127.0.0.1", "NODE_RANK": "0", "PROCESSES": "2", "MASTER_PORT": str(free_port())}
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, cwd=undisturbed, env=environment() | node, stdout=full, stderr=full, timeout=300)
    assert done.returncode == 0
    assert trace(undisturbed, run) == trace(undisturbed)
    assert (undisturbed / run / "result.json").exists()


# Two processes: the first ends with the status that the script is given, the other like one that has been asked to leave.
LEAVES = r"""
import os, sys, time
from sleepfm.training.ranks.ending import end_silently
from sleepfm.training.ranks.preemption import leave_at_once

leave_at_once()
# In one piece: both write to the same pipe.
os.write(1, b"ready\n")
if sys.argv[-1] != "waits" and os.environ["RANK"] == "0":
    end_silently(int(sys.argv[-1]))
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ends", "status"),
    [
        (signal.SIGINT, "waits", PREEMPTED_STATUS),
        (signal.SIGTERM, "waits", PREEMPTED_STATUS),
        (signal.SIGUSR1, "waits", PREEMPTED_STATUS),
        (signal.SIGHUP, "waits", PREEMPTED_STATUS),
        # What has failed has failed, whatever its launcher asks of the others.
        (None, "1", 1),
        (None, "69", 69),
    ],
)
def test_the_launcher_ends_with_the_status_of_its_processes(
    tmp_path: Path, number: signal.Signals | None, ends: str, status: int
) -> None:
    (tmp_path / "job.py").write_text(LEAVES)
    line = [sys.executable, "-m", "sleepfm.training.launcher", "2", "job.py", ends]
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, preexec_fn=hear_signals) as launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        if number is not None:
            launcher.send_signal(number)
        assert launcher.wait(timeout=120) == status


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 4, 7])
def test_a_command_that_is_ended_while_it_starts_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    with running(tmp_path, command(2, *LONG), str(tmp_path)) as job:
        time.sleep(seconds)
        started = family(job)
        job.terminate()
        job.wait(timeout=60)
        deadline = time.monotonic() + 60
        while own := within(tmp_path):
            assert time.monotonic() < deadline, [process.cmdline() for process in own]
            time.sleep(0.5)
        assert [process for process in psutil.wait_procs(started, timeout=1)[1] if not has_ended(process)] == []


def test_what_a_shell_has_told_to_be_ignored_is_ignored() -> None:
    script = "from sleepfm.training.ranks import preemption as p; import os, signal; p.leave_at_once()\n"
    for number, status in ((signal.SIGHUP, 0), (signal.SIGTERM, PREEMPTED_STATUS), (signal.SIGUSR1, PREEMPTED_STATUS)):
        code = f"trap '' HUP USR1; exec {sys.executable} -c '{script}os.kill(os.getpid(), {int(number)})'"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, preexec_fn=hear_signals)
        assert done.returncode == status, done.stderr
