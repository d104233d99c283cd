"""Two jobs in one folder under the real launcher: the second is refused, the first is whole."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from launching import CONFIG, alone, command, environment, family, launch, trace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_second_job_of_a_folder_is_refused_by_host_and_process(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    go = tmp_path / "go"
    # Item 50 is of the seventh step.
    first = subprocess.Popen(
        command(2, "toy.wait_at=50", f"toy.wait_flag={go}"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "trace.jsonl").exists() or len(trace(tmp_path)) < 6:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # Figures are being delivered meanwhile; what the run itself is made of must stay.
    files = [tmp_path / "run" / name for name in ("run.json", "config.yaml", "trace.jsonl", ".lock")]
    files += [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    own = ("toy.wait_at=50", f"toy.wait_flag={go}")
    for second in (launch(tmp_path, 2, *own, node=True), alone(tmp_path, "train.lr=0.02", "--resume", "never")):
        assert second.returncode == 1
        said = [line for line in second.stderr.splitlines() if line.startswith("error")]
        assert len(said) == 1, second.stderr
        found = re.fullmatch(r"error: run: process (\d+) on host (\S+) \(since .*\) is writing here; .*", said[0])
        assert found and found[2] == socket.gethostname()
        assert int(found[1]) in {process.pid for process in family(first)}
    assert {path: path.read_bytes() for path in files} == before
    go.touch()
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    assert [row["step"] for row in trace(tmp_path)] == list(range(1, 13))


def test_a_job_that_was_killed_does_not_keep_its_folder(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    waiting = ("toy.wait_at=50", f"toy.wait_flag={tmp_path / 'go'}")
    first = subprocess.Popen(
        command(2, *waiting), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "trace.jsonl").exists() or len(trace(tmp_path)) < 6:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    everyone = family(first)
    for process in everyone:
        process.kill()
    first.wait()
    psutil.wait_procs(everyone, timeout=30)
    (tmp_path / "go").touch()
    second = launch(tmp_path, 2, *waiting, node=True)
    assert second.returncode == 0, second.stderr
    assert [row["step"] for row in trace(tmp_path)] == list(range(1, 13))
