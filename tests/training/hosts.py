"""Hosts of a job in processes and networks of their own, and what tests ask of the run that they share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import environment, family, hear_signals, trace

LONG = ("train.steps=24", "toy.seconds=0.1")
# What belongs to a rank (dropout, batch statistics) must not be there when the number of processes changes.
PLAIN = ("toy.dropout=0", "toy.statistics=false")


class Host:
    """One host's launcher, in a process group of its own, its output in ``<name>.log``."""

    def __init__(self, folder: Path, name: str, command: list[str], variables: dict[str, str]) -> None:
        self.command, self.variables = command, variables
        self.log = folder / f"{name}.log"
        sink = self.log.open("w")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment() | {"PYTHON": sys.executable} | variables,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=hear_signals,
        )

    def signal_all(self, number: int) -> None:
        """As Slurm does: to every process of the host's part of the job."""
        for process in family(self.process):
            process.send_signal(number)

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=600)
        finally:
            if self.process.poll() is None:
                self.signal_all(signal.SIGKILL)


def reach(folder: Path, run: str, step: int, hosts: list[Host]) -> None:
    path, deadline = folder / run / "trace.jsonl", time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < step:
        assert time.monotonic() < deadline
        assert all(host.process.poll() is None for host in hosts), [host.log.read_text()[-2000:] for host in hosts]
        time.sleep(0.02)


def lose(host: Host) -> None:
    """The host with all its processes, as when its power is cut."""
    host.signal_all(signal.SIGKILL)
    host.wait()


def seconds_until(folder: Path, run: str, step: int, hosts: list[Host]) -> float:
    """Seconds until ``run`` has done ``step`` steps."""
    began = time.monotonic()
    reach(folder, run, step, hosts)
    return time.monotonic() - began


def assert_losses(folder: Path, run: str) -> None:
    """Of ``run``, which took another number of processes for a while."""
    rows, base = trace(folder, run), trace(folder, "plain")
    assert [row["step"] for row in rows] == [row["step"] for row in base]
    for row, other in zip(rows, base, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


@contextmanager
def networks() -> Iterator[tuple[list[str], list[str]]]:
    """Commands that put a process into one of two network namespaces, joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"sleepfm-{os.getpid()}-{number}" for number in range(2)]

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
