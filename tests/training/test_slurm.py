"""``launch/slurm`` under a real Slurm: two nodes on this machine, a job that is asked to leave and goes back into the queue."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from launching import CONFIG, TOY, environment, family, launch, trace
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

BATCH = Path(__file__).parents[2] / "launch" / "slurm" / "train.sbatch"
CLUSTER = """
ClusterName=tests
SlurmctldHost={host}
SlurmctldPort={port}
AuthType=auth/none
CryptoType=crypto/munge
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/linear
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=300
KillWait=60
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=host1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 State=UNKNOWN
NodeName=host2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=host1,host2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables that lead Slurm's commands to a cluster of two nodes of one processor."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch")):
        pytest.skip("needs root and Slurm (Debian: slurmctld, slurmd, slurm-client)")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder}
    ports = {"port": free_port(), "port1": free_port(), "port2": free_port()}
    (folder / "slurm.conf").write_text(CLUSTER.format(**names, **ports))
    variables = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "host1"], ["slurmd", "-D", "-N", "host2"]]
    log = (folder / "daemons.log").open("a")
    started = [subprocess.Popen(command, env=variables, stdout=log, stderr=log) for command in daemons]
    try:
        deadline = time.monotonic() + 60
        while "idle" not in (state := run(variables, "sinfo", "-h", "-o", "%T %D")) or "2" not in state:
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in started):
                pytest.skip(f"Slurm does not start here: {state} {(folder / 'daemons.log').read_text()[-1000:]}")
            time.sleep(0.5)
        yield variables
    finally:
        for process in [process for daemon in started for process in family(daemon)]:
            process.kill()


def run(variables: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=variables, capture_output=True, text=True).stdout.strip()


class Batch:
    """``launch/slurm/train.sbatch`` with the toy in ``folder``, whose run is ``slurm``."""

    def __init__(self, cluster: dict[str, str], folder: Path, *arguments: str) -> None:
        self.folder, self.cluster, self.trace = folder, cluster, folder / "slurm" / "trace.jsonl"
        (folder / "toy.yaml").write_text(CONFIG)
        # A user's folder looks like the repository: launch/ and .venv/ below it.
        for name, place in {"launch": BATCH.parents[1], ".venv": Path(sys.executable).parents[1]}.items():
            if not (folder / name).exists():
                (folder / name).symlink_to(place)
        variables = cluster | environment() | {"SLURM_CONF": cluster["SLURM_CONF"], "PROCESSES": "1"}
        # Both nodes are this machine, whose names for them nobody knows.
        variables["NODES"] = "127.0.0.1 127.0.0.2"
        options = ["--gpus-per-node=0", "--cpus-per-task=1", f"--chdir={folder}", "--parsable", "--export=ALL"]
        submit = ["sbatch", *options, str(BATCH), str(TOY), "toy.yaml", *arguments, "train.output=slurm"]
        done = subprocess.run(submit, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    @property
    def log(self) -> str:
        path = self.folder / f"sleepfm-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, what: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (self.log, run(self.cluster, "scontrol", "show", "job", self.number))
            time.sleep(0.2)

    def steps(self) -> int:
        return self.trace.read_text().count("\n") if self.trace.exists() else 0

    def task(self, host: int) -> psutil.Process:
        """The supervisor of a node."""
        found = [p for p in self.processes() if "sleepfm.training.nodes" in p.cmdline()]
        return next(p for p in found if p.environ()["NODE_RANK"] == str(host))

    def processes(self) -> list[psutil.Process]:
        """Supervisors, DeepSpeed's launchers and ranks."""
        found = [p for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cwd"] == str(self.folder)]
        return [p for p in found if str(TOY) in p.info["cmdline"] and "srun" not in p.info["cmdline"]]


def test_a_job_that_slurm_asks_to_leave_goes_back_into_the_queue_and_on(cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = ["train.steps=24", "toy.seconds=0.2"]
    assert launch(tmp_path, 2, *arguments).returncode == 0
    job = Batch(cluster, tmp_path, *arguments)
    job.wait(lambda: job.steps() >= 6)
    # What `#SBATCH --signal=USR1@300` does when the time is nearly over, and scancel's way to every step of the job.
    run(cluster, "scancel", "--signal=USR1", job.number)
    job.wait(lambda: "going back into the queue (restart 1)" in job.log)
    left = trace(tmp_path, "slurm")[-1]["step"]
    assert 6 <= left < 24
    # Slurm would let a requeued job wait for two minutes. Within the second in which it has revoked the credential of the start
    # before, it takes the next one's for that and ends the job.
    job.wait(lambda: run(cluster, "squeue", "-h", "-j", job.number, "-o", "%T") == "PENDING", 60)
    time.sleep(3)
    run(cluster, "scontrol", "update", f"JobId={job.number}", "StartTime=now")
    job.wait(lambda: "registered toy:" in job.log)
    assert "Restarts=1" in run(cluster, "scontrol", "show", "job", job.number)
    assert trace(tmp_path, "slurm") == trace(tmp_path)


def test_a_job_that_is_cancelled_saves_and_the_next_one_goes_on(cluster: dict[str, str], tmp_path: Path) -> None:
    """``scancel`` sends SIGTERM to every process, and SIGKILL after ``KillWait``."""
    arguments = ["train.steps=24", "toy.seconds=0.2"]
    assert launch(tmp_path, 2, *arguments).returncode == 0
    job = Batch(cluster, tmp_path, *arguments)
    job.wait(lambda: job.steps() >= 6)
    processes = job.processes()
    assert len(processes) >= 4
    run(cluster, "scancel", job.number)
    assert psutil.wait_procs(processes, timeout=50)[1] == [], job.log
    left = trace(tmp_path, "slurm")[-1]["step"]
    assert 6 <= left < 24
    assert (tmp_path / "slurm" / "checkpoints" / f"step-{left:08d}").is_dir()
    job.wait(lambda: "JobState=CANCELLED" in run(cluster, "scontrol", "show", "job", job.number), 60)
    assert "Restarts=0" in run(cluster, "scontrol", "show", "job", job.number) and "going back" not in job.log
    again = Batch(cluster, tmp_path, *arguments)
    again.wait(lambda: "registered toy:" in again.log)
    assert trace(tmp_path, "slurm") == trace(tmp_path)


def test_a_lost_node_restarts_the_job_in_its_allocation(cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = ["train.steps=24", "toy.seconds=0.2", "toy.dropout=0", "toy.statistics=false"]
    assert launch(tmp_path, 2, *arguments).returncode == 0
    job, began = Batch(cluster, tmp_path, *arguments), time.monotonic()
    job.wait(lambda: job.steps() >= 1)
    start = time.monotonic() - began
    job.wait(lambda: job.steps() >= 6)
    lost = job.task(1)
    for process in [lost, *lost.children(recursive=True)]:
        process.kill()
    step, began = job.steps(), time.monotonic()
    job.wait(lambda: job.steps() > step)
    seconds = time.monotonic() - began
    print(f"node lost at step {step}; the first new step after {seconds:.0f} s, of a start after {start:.0f} s")
    assert "start 2 on 1 nodes: 127.0.0.1" in job.log
    # A minute on two idle cores, where a start takes 20 s; what is left also brings the checkpoint into its own layout.
    assert seconds < 2 * start + 20
    job.wait(lambda: "registered toy:" in job.log)
    job.wait(lambda: run(cluster, "squeue", "-h", "-j", job.number, "-o", "%T") in ("", "COMPLETED"), 60)
    shown = run(cluster, "scontrol", "show", "job", job.number)
    assert "JobState=COMPLETED" in shown and "Restarts=0" in shown
    for row, other in zip(trace(tmp_path, "slurm"), trace(tmp_path), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
