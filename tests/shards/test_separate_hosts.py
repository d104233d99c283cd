"""A Ray cluster of two hosts that share nothing but the object store, and jobs that a third machine submits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RAY = str(Path(sys.executable).with_name("ray"))
# A host's own name, its own /tmp, in which Ray and everything else keep their files, and one folder that all hosts see.
OWN_DISK = 'set -e; hostname "$1"; mount --bind "$2" /srv; mount -t tmpfs tmpfs /tmp; cd /tmp; shift 2; exec "$@"'


class Hosts:
    """The head, which gives no CPU, and a host that works."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._folder, self._variables = folder, variables
        self.processes: list[subprocess.Popen[bytes]] = []
        port, dashboard, client, *agents = free_ports(9)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        self._start("node-a", [*head, "--node-ip-address=127.0.0.1", "--num-cpus=0"], agents[:3])
        self._start("node-b", [f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2", "--num-cpus=1"], agents[3:])

    def _start(self, name: str, options: list[str], ports: list[int]) -> None:
        log = self._folder / f"{name}.log"
        command = ["unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", OWN_DISK, "host", name, self.shared]
        command += [RAY, "start", "--block", "--disable-usage-stats", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"]
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        command += [*options, *(f"--{option}={port}" for option, port in zip(names, ports, strict=True))]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self._variables, start_new_session=True)
        self.processes.append(process)
        deadline = time.monotonic() + 240
        while "Ray runtime started" not in (text := log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.3)

    def submit(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A job of ``python -m shards``, submitted from here."""
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", sys.executable, "-m", "shards"]
            + [str(word) for word in words],
            cwd=Path(__file__).parents[2],
            env=self._variables,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def copy_to_head(self, folder: Path, target: str) -> None:
        """Put ``folder`` on the head's own disk."""
        shutil.copytree(folder, self.shared / folder.name)
        inside = ["nsenter", "--mount", f"--target={self.processes[0].pid}"]
        subprocess.run([*inside, "mv", f"/srv/{folder.name}", target], check=True)

    def end(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, s3, shards_environment) -> Iterator[Hosts]:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "--uts", "true"]).returncode:
        pytest.skip("mount namespaces need root and the command unshare")
    several = None
    try:
        several = Hosts(tmp_path_factory.mktemp("hosts"), shards_environment(None))
        yield several
    finally:
        if several is not None:
            several.end()


@pytest.fixture(scope="module")
def source(cohort, s3) -> str:
    return s3.upload(cohort, "hosts/cohort")


def test_a_submitted_job_builds_from_a_bucket_into_a_bucket(source, built, place, hosts):
    out = "s3://sleep/hosts/out"
    done = hosts.submit("build", source, out, "--cohort", "shhs1", "recordings_per_shard=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert place(out).digests() == place(built).digests()
    assert f"{out}: whole" in hosts.submit("verify", out).stdout


def test_a_folder_of_one_host_is_refused_before_anything_is_converted(source, hosts):
    done = hosts.submit("build", source, "/tmp/out", "--cohort", "shhs1", "recordings_per_shard=2")
    assert done.returncode != 0
    assert "/tmp/out: on host node-b this is not the folder that the build writes into" in done.stdout + done.stderr
    assert "give URLs (s3://...)" in done.stdout + done.stderr and " refused, see" not in done.stdout


def test_a_source_of_one_host_is_refused(hosts, cohort):
    # On the head alone, in its own /tmp.
    hosts.copy_to_head(cohort, "/tmp/cohort")
    done = hosts.submit("build", "/tmp/cohort", "/srv/elsewhere", "--cohort", "shhs1", "recordings_per_shard=2")
    assert done.returncode != 0
    assert "/tmp/cohort: is not there on host node-b" in done.stdout + done.stderr


def test_a_folder_that_all_hosts_see_is_taken(source, built, place, hosts):
    done = hosts.submit("build", source, "/srv/from-bucket", "--cohort", "shhs1", "recordings_per_shard=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert place(hosts.shared / "from-bucket").digests() == place(built).digests()
