"""A small synthetic cohort with faults, and a Ray cluster of its own, once for all tests of shards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from object_store import BUCKET, ObjectStore
from ports import free_ports

from shards.__main__ import main as shards
from shards.lease import LEASE_FOLDER
from sleepfm.cli import main as sleepfm
from sleepfm.lock import LOCK_FILE

# A busy machine is no fault of what is tested.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

SUBJECTS = 6
# The tests' cluster listens on this machine for their duration and asks for no token, so that they neither need nor
# make one in the user's home. A core a worker, so that the bytes do not depend on who else is at work; and workers of
# ordinary priority (Ray's is the lowest but a few), which a busy machine does not keep waiting, and which stay when others
# have been at work in between, since they take seconds to start.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_worker_niceness": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}


@dataclass(frozen=True)
class RayCluster:
    """Address for ``RAY_ADDRESS`` and for ``ray job submit --address``, and the process that all others descend from."""

    address: str
    dashboard: str
    pid: int


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short nights as an SHHS download; read only."""
    source = tmp_path_factory.mktemp("cohort") / "nsrr"
    status = sleepfm(["synth", str(source), "--subjects", str(SUBJECTS), "--hours", "0.2", "--seed", "1", "--clean"])
    assert status == 0
    return source


@pytest.fixture
def faulty_cohort(cohort: Path, tmp_path: Path) -> Path:
    """The cohort with a truncated recording, a scoring of another night, and a file that is no EDF."""
    source = tmp_path / "faulty"
    shutil.copytree(cohort, source)
    edfs = source / "polysomnography" / "edfs" / "shhs1"
    scorings = source / "polysomnography" / "annotations-events-nsrr" / "shhs1"
    with (edfs / "shhs1-200002.edf").open("r+b") as file:
        file.truncate(1500)
    text = (scorings / "shhs1-200003-nsrr.xml").read_text()
    (scorings / "shhs1-200003-nsrr.xml").write_text(text[: len(text) // 2])
    (edfs / "notes.edf").write_text("these are not the bytes you are looking for\n" * 40)
    return source


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory, s3: ObjectStore) -> Iterator[RayCluster]:
    """A head node of two CPUs on ports of its own, ended with its own processes alone; its workers know the object store."""
    folder = tmp_path_factory.mktemp("ray")
    # Ray gives a node half a minute to come up, which a busy machine may not have.
    for attempt in range(4):
        log = folder / f"head{attempt}.log"
        head, cluster = _start_head(log)
        if _is_up(head, log):
            break
        _end(head)
    else:
        pytest.fail(f"Ray did not start: {log.read_text()[-2000:]}")
    yield cluster
    _end(head)


def _start_head(log: Path) -> tuple[subprocess.Popen[bytes], RayCluster]:
    port, dashboard, client, agent = free_ports(4)
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--num-cpus=2",
        "--num-gpus=0",
        f"--object-store-memory={100 * 2**20}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        "--disable-usage-stats",
    ]
    with log.open("w") as file:
        head = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment(None), start_new_session=True)
    return head, RayCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", head.pid)


def _is_up(head: subprocess.Popen[bytes], log: Path) -> bool:
    while head.poll() is None:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.2)
    return False


def _end(head: subprocess.Popen[bytes]) -> None:
    head.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


@pytest.fixture(scope="session")
def connection(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """This process connected to the cluster: builds in it find their workers warm."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for key, value in SETTINGS.items():
            patch.setenv(key, value)
        ray.init(address=ray_cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield ray_cluster
    ray.shutdown()


@pytest.fixture(scope="session")
def built(cohort: Path, connection: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort built on the cluster, two recordings a shard; read only."""
    out = tmp_path_factory.mktemp("built") / "out"
    result = run_here(["build", cohort, out, "--cohort", "shhs1", "recordings_per_shard=2"])
    assert result.returncode == 0, result.stdout + result.stderr
    return out


Command = Callable[[Sequence[object]], subprocess.CompletedProcess[str]]


def run_here(arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """``python -m shards`` in this process, with its exit status and what it prints."""
    text = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            status = shards(text)
        except SystemExit as error:
            status = int(error.code or 0)
    return subprocess.CompletedProcess(text, status, out.getvalue(), errors.getvalue())


@pytest.fixture
def run(connection: RayCluster) -> Command:
    """:func:`run_here`, connected to the cluster."""
    return run_here


def start_shards(arguments: Sequence[object], address: str | None) -> subprocess.Popen[str]:
    """``python -m shards`` as a user starts it, on the cluster at ``address`` or on one of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "shards", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(address),
    )


@pytest.fixture(scope="session")
def start() -> Callable[[Sequence[object], str | None], subprocess.Popen[str]]:
    """:func:`start_shards`, for test modules."""
    return start_shards


def environment(address: str | None) -> dict[str, str]:
    """This process's environment with or without ``RAY_ADDRESS``."""
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**variables, **SETTINGS, **({"RAY_ADDRESS": address} if address else {})}


@pytest.fixture(scope="session")
def shards_environment() -> Callable[[str | None], dict[str, str]]:
    """:func:`environment`, for test modules."""
    return environment


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of every file of a data set, by its path in it."""

    def of(out: Path) -> dict[str, str]:
        return {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }

    return of


class Place:
    """Where a build writes, a folder or a URL."""

    def __init__(self, out: Path | str, store: ObjectStore) -> None:
        self.out = out
        self._store = store

    @property
    def _key(self) -> str:
        return str(self.out).partition(f"s3://{BUCKET}/")[2]

    def names(self) -> list[str]:
        """Files of the data set that are there."""
        if isinstance(self.out, Path):
            return [path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if path.is_file()]
        return self._store.names(self._key)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each, but of what keeps builders apart."""
        found: dict[str, bytes] = {}
        if isinstance(self.out, Path):
            for name in self.names():
                try:
                    found[name] = (self.out / name).read_bytes()
                except FileNotFoundError:
                    # A worker outlives its driver by a moment, and may put in place what it writes.
                    if not name.endswith(".tmp"):
                        raise
        else:
            found = self._store.contents(self._key)
        return {
            name: hashlib.sha256(content).hexdigest()
            for name, content in found.items()
            if not name.startswith((LOCK_FILE, LEASE_FOLDER))
        }


@pytest.fixture(scope="session")
def place(s3: ObjectStore) -> Callable[[Path | str], Place]:
    """The data set at a folder or URL."""
    return lambda out: Place(out, s3)


@pytest.fixture(params=["folder", pytest.param("url", marks=pytest.mark.slow)])
def output(request: pytest.FixtureRequest, tmp_path: Path, s3: ObjectStore) -> Place:
    """A place that nothing is written to yet."""
    return Place(tmp_path / "out" if request.param == "folder" else f"s3://{BUCKET}/{uuid.uuid4().hex}", s3)
