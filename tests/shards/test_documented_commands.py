"""The commands of docs/shards.md and docs/nsrr.md, as they stand there, by a user who has built on this machine before."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_store import ObjectStore
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]


BUCKET = "s3://sleep/documented"


def documented(page: str) -> list[list[str]]:
    """The commands of a page for a cluster: its block with `ray start`, or all of them."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    if page == "shards.md":
        (blocks,) = [[block] for block in blocks if "ray start" in block]
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


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


class Cluster:
    """Somebody who follows a page: what is exported stays, and a head node runs until the end."""

    def __init__(self, folder: Path, variables: dict[str, str], store: ObjectStore, cohort: Path) -> None:
        self._folder, self._variables, self._store, self._cohort = folder, variables, store, cohort
        self._port, self._dashboard = free_port(), free_port()
        self._head: subprocess.Popen[bytes] | None = None

    def do(self, words: list[str]) -> None:
        """One line of a page."""
        words = [re.sub("^(data.path=)?s3://bucket", rf"\g<1>{self._bucket}", word) for word in words]
        if words[0] == "export":
            # The credentials are those of the test's server, which are there already.
            name, value = words[1].split("=", 1)
            assert value != "..." or name in self._store.environment
            self._variables |= {} if value == "..." else {name: value}
        elif words[0] in ("gem", "nsrr"):
            # Nobody's token is here; the cohort is laid out as this download is.
            assert words[:2] in (["gem", "install"], ["nsrr", "download"])
        elif words[:3] == ["aws", "s3", "sync"]:
            assert words[3] == "shhs"
            self._store.upload(self._cohort, words[4].removeprefix("s3://sleep/"))
        elif words[:2] == ["ray", "start"]:
            self._start(words)
        else:
            words = [word.replace("8265", str(self._dashboard)) for word in words]
            run = subprocess.run(words, env=self._variables, cwd=ROOT, capture_output=True, text=True, timeout=900)
            # Of six people none is in `val`; the job has read the data set by then.
            few = words[:2] == ["sleepfm", "pretrain"] and "split 'val' is empty (of 6 recordings)" in run.stderr
            if run.returncode and not few:
                pytest.fail(f"{shlex.join(words)}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")

    @property
    def _bucket(self) -> str:
        return f"{BUCKET}/{self._folder.name}"

    def _start(self, words: list[str]) -> None:
        # Ports of its own, and in the foreground, so that it can be ended without touching other clusters.
        options = ["--block", f"--port={self._port}", f"--dashboard-port={self._dashboard}", "--num-cpus=1"]
        options += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        options += ["--disable-usage-stats"]
        log = self._folder / "head.log"
        with log.open("w") as file:
            self._head = subprocess.Popen(
                [*words, *options], env=self._variables, stdout=file, stderr=file, start_new_session=True, cwd=ROOT
            )
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (text := log.read_text()):
            assert self._head.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.3)

    def end(self) -> None:
        if self._head is not None:
            os.killpg(self._head.pid, signal.SIGTERM)
            try:
                self._head.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._head.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("page", "out"), [("shards.md", "shards"), ("nsrr.md", "shards/shhs")])
def test_the_documented_commands_work_after_a_build_on_this_machine(
    cohort: Path, s3: ObjectStore, tmp_path: Path, page: str, out: str
) -> None:
    variables = fresh(tmp_path / "home")
    # NSRR's paths below the folder that a page builds from are those of the cohort.
    done = build(cohort, tmp_path / "here", variables)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home" / ".ray").exists(), "a build leaves nothing of Ray's in the user's home"
    key = f"documented/{tmp_path.name}"
    s3.upload(cohort, f"{key}/cohort")
    cluster = Cluster(tmp_path, variables, s3, cohort)
    try:
        for words in documented(page):
            cluster.do(words)
    finally:
        cluster.end()
    assert s3.contents(f"{key}/{out}")["dataset.json"] == (tmp_path / "here" / "dataset.json").read_bytes()
