"""Clusters whose nodes come late, come in numbers, or vanish: a build waits for them and uses what there is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from made_edf import Made, write_edf
from ports import free_port
from ray._private.services import get_node_ip_address

MIB = 2**20


class Growing:
    """A head without a CPU, and the nodes that are added to it, of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        patience = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patience})
        self.nodes: list[Any] = []

    def add(self, memory: int | None = None) -> Any:
        self.nodes.append(self.cluster.add_node(num_cpus=1, **({"memory": memory} if memory else {})))
        return self.nodes[-1]

    def kill(self, *nodes: Any) -> None:
        for node in nodes or tuple(self.nodes):
            self.nodes.remove(node)
            self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def head() -> Iterator[Growing]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}.items():
            patch.setenv(key, value)
        several = Growing()
        yield several
        several.cluster.shutdown()


@pytest.fixture
def growing(head: Growing) -> Iterator[Growing]:
    """The head, without a node before and after."""
    yield head
    head.kill()


def arguments(cohort: Path, out: Path, *more: str) -> list[object]:
    return ["build", cohort, out, "--cohort", "shhs1", "recordings_per_shard=2", *more]


def lines_of(driver: subprocess.Popen[str]) -> list[str]:
    """What ``driver`` prints, as it comes."""
    lines: list[str] = []
    assert driver.stdout is not None
    stdout = driver.stdout
    threading.Thread(target=lambda: lines.extend(iter(stdout.readline, "")), daemon=True).start()
    return lines


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_head_alone_is_waited_with_for_nodes(cohort, built, growing, tmp_path, start, digests):
    out = tmp_path / "out"
    impatient = start(arguments(cohort, tmp_path / "never", "ray.wait_for_nodes_s=3"), growing.cluster.address)
    stdout, stderr = impatient.communicate(timeout=120)
    assert impatient.returncode == 1, stdout + stderr
    assert "has offered a CPU and 200 MB of memory for" in stderr and len(stderr.splitlines()) == 1
    driver = start(arguments(cohort, out), growing.cluster.address)
    lines = lines_of(driver)
    wait_until(lambda: any(line.startswith("waiting for nodes: none of 1 offers a CPU") for line in lines))
    growing.add()
    assert driver.wait(180) == 0, lines
    assert digests(out) == digests(built)


def many(cohort: Path, folder: Path, count: int) -> Path:
    """Recordings that begin at different records of the cohort's, so that none is another one's copy."""
    folder.mkdir()
    edfs = sorted(cohort.rglob("*.edf"))
    for number in range(count):
        left_out, content = number // len(edfs), edfs[number % len(edfs)].read_bytes()
        header, records = int(content[184:192]), int(content[236:244])
        begin = header + left_out * (len(content) - header) // records
        fixed = content[:236] + b"%-8d" % (records - left_out) + content[244:header]
        (folder / f"shhs1-{number:03d}.edf").write_bytes(fixed + content[begin:])
    return folder


def busy() -> int:
    """Workers below this process that are at a shard."""
    count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            count += bool(process.cmdline()) and process.cmdline()[0].startswith("ray::run_task")
    return count


@pytest.mark.slow
def test_nodes_that_come_are_used_and_nodes_that_all_vanish_are_waited_for(cohort, growing, tmp_path, start, run, digests):
    # Enough that the second node, which takes a while on a busy machine, still finds work.
    source, out = many(cohort, tmp_path / "source", 144), tmp_path / "out"
    growing.add()
    driver = start(arguments(source, out), growing.cluster.address)
    lines = lines_of(driver)
    finished = lambda: len(list(out.glob("shards/*.json")))  # noqa: E731
    wait_until(lambda: finished() >= 2)
    growing.add()
    wait_until(lambda: busy() == 2)
    wait_until(lambda: finished() >= 5)
    growing.kill()
    wait_until(lambda: any(line.startswith("waiting for nodes") for line in lines))
    growing.add()
    growing.add()
    wait_until(lambda: finished() >= 10)
    growing.kill(growing.nodes[0])
    assert driver.wait(300) == 0, lines
    assert not any("tried one by one" in line or line.startswith("refused ") for line in lines), lines
    whole = tmp_path / "whole"
    assert run(arguments(source, whole)).returncode == 0
    assert digests(out) == digests(whole)


# Takes the one node that is large enough, so that what else needs it waits.
HOLD = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1, memory=int(sys.argv[2]))
def hold():
    time.sleep(100_000)
task = hold.remote()
while ray.available_resources().get("CPU", 0) > 1:
    time.sleep(0.05)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_task_that_fits_no_node_any_more_asks_for_less(growing, tmp_path, start, shards_environment):
    """The one node that could hold a long recording vanishes before its turn comes."""
    # A day of nothing, which is refused as soon as it is looked at; its header asks for some hundred megabytes.
    records = 86_400
    (tmp_path / "in").mkdir()
    path = write_edf(tmp_path / "in" / "day.edf", [Made("C4-M1", np.zeros(100, int), 100)], claimed=records)
    with path.open("r+b") as file:
        file.truncate(512 + records * 200)
    growing.add(300 * MIB)
    large = growing.add(3000 * MIB)
    address = growing.cluster.address
    hold = [sys.executable, "-c", HOLD, address, str(1500 * MIB)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(hold, env=shards_environment(None), text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        driver = start(["build", tmp_path / "in", tmp_path / "out", "--cohort", "generic"], address)
        lines = lines_of(driver)
        # The header is read on the small node; the task itself waits for the large one.
        wait_until(lambda: any(line.startswith("working: no shard finished for") for line in lines))
        assert driver.poll() is None and not any("shards 1/1" in line for line in lines)
        growing.kill(large)
        assert driver.wait(120) == 1, lines
        holder.kill()
    assert any(line.startswith("refused day.edf: ") for line in lines), lines


# Nodes in processes of this machine, which Ray's own autoscaler starts and ends as tasks ask for them.
AUTOSCALING: dict[str, Any] = {
    "cluster_name": "growing",
    "max_workers": 2,
    "provider": {
        "type": "external",
        "module": "nodes_of_this_machine.Provider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "memory": 2000 * MIB, "object_store_memory": 80 * MIB},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1,
    "docker": {},
    "file_mounts": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "file_mounts_sync_continuously": False,
}


@contextlib.contextmanager
def autoscaled(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Address and process of a head without a CPU, whose autoscaler makes workers; all of them end with the block."""
    variables = environment | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    path = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(path)
    with contextlib.ExitStack() as stack:
        # Else other clusters' jobs would take this one for theirs; and paths of sockets must be short.
        variables["RAY_TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        # Ray gives a node half a minute to come up, which a busy machine may not have.
        for attempt in range(4):
            port = free_port()
            address = f"{get_node_ip_address()}:{port}"
            settings, log = folder / "autoscaling.json", folder / f"head{attempt}.log"
            settings.write_text(json.dumps({**AUTOSCALING, "provider": {**AUTOSCALING["provider"], "gcs_address": address}}))
            command = [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=0"),
                *(f"--autoscaling-config={settings}", "--include-dashboard=false", "--disable-usage-stats"),
                f"--ray-client-server-port={free_port()}",
            ]
            with log.open("w") as file:
                head = subprocess.Popen(command, env=variables, stdout=file, stderr=file, start_new_session=True)
            stack.callback(end_session, head)
            wait_until(lambda head=head, log=log: "Ray runtime started" in log.read_text() or head.poll() is not None)
            if head.poll() is None:
                break
        else:
            pytest.fail(log.read_text()[-2000:])
        yield address, head.pid


def end_session(head: subprocess.Popen[bytes]) -> None:
    """End all processes of the session that ``head`` began; the workers that an autoscaler makes are among them."""
    mine = [process for process in psutil.process_iter() if in_session(process.pid, head.pid)]
    for process in mine:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(mine, timeout=20)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(20)


def nodes_in(session: int) -> int:
    """Ray's nodes among the processes of ``session``."""
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            count += process.name() == "raylet" and in_session(process.pid, session)
    return count


def in_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False


@pytest.mark.slow
def test_an_autoscaler_makes_nodes_from_none_as_the_build_asks_for_them(
    cohort, tmp_path, start, run, shards_environment, digests
):
    source, out = many(cohort, tmp_path / "source", 24), tmp_path / "out"
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, nodes_in(session))
        return driver.poll() is not None

    with autoscaled(tmp_path, shards_environment(None)) as (address, session):
        driver = start(arguments(source, out), address)
        lines = lines_of(driver)
        try:
            wait_until(ended, 400)
        finally:
            driver.kill()
    assert driver.returncode == 0, lines
    assert any(line.startswith("waiting for nodes") for line in lines)
    # Two of them, as many as it may make: tasks that wait are what it sees.
    assert most == 1 + AUTOSCALING["max_workers"]
    whole = tmp_path / "whole"
    assert run(arguments(source, whole)).returncode == 0
    assert digests(out) == digests(whole)
