"""The commands of docs/shards.md for a cluster, as they stand there, by a user who has built on this machine before."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def documented() -> list[list[str]]:
    """The lines of the block that starts a cluster."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "shards.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "ray start" in block]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fresh(home: Path) -> dict[str, str]:
    """The environment of a user who has never used Ray."""
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    # `--working-dir` sends the working folder; the interpreter of the job finds the product there.
    return kept | {"HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}


def build(source: Path, out: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "shards", "build", str(source), str(out), "--workers", "1"]
    return subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_documented_commands_work_after_a_build_on_this_machine(cohort: Path, tmp_path: Path) -> None:
    variables = fresh(tmp_path / "home")
    done = build(cohort, tmp_path / "here", variables)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home" / ".ray").exists(), "a build leaves nothing of Ray's in the user's home"
    port, dashboard = free_port(), free_port()
    head: subprocess.Popen[bytes] | None = None
    out = tmp_path / "submitted"
    try:
        for line in documented():
            if line[0] == "export":
                variables |= dict([line[1].split("=", 1)])
            elif line[:2] == ["ray", "start"]:
                # Ports of its own, and in the foreground, so that it can be ended without touching other clusters.
                options = ["--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=1", "--disable-usage-stats"]
                options += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
                with (tmp_path / "head.log").open("w") as log:
                    head = subprocess.Popen(
                        [*line, *options], env=variables, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
                    )
                deadline = time.monotonic() + 180
                while "Ray runtime started" not in (text := (tmp_path / "head.log").read_text()):
                    assert head.poll() is None and time.monotonic() < deadline, text
                    time.sleep(0.3)
            else:
                words = [word.replace("8265", str(dashboard)) for word in line]
                words = [{"SRC": str(cohort), "OUT": str(out)}.get(word, word) for word in words]
                run = subprocess.run(words, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=600)
                assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    finally:
        if head is not None:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
    assert (out / "dataset.json").read_bytes() == (tmp_path / "here" / "dataset.json").read_bytes()
