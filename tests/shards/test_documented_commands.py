"""The commands of docs/shards.md and docs/nsrr.md, as they stand there, by a user who has built on this machine before; those
that need GPUs on paper.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from made_nights import make_dataset, make_night
from object_store import ObjectStore
from ports import free_port
from registered_models import register_champion

from sleepfm.config import read_yaml
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package

ROOT = Path(__file__).resolve().parents[2]


BUCKET = "s3://sleep/documented"


def documented(page: str, language: str = "sh") -> list[list[str]]:
    """The commands of a page for a cluster: its block with `ray start`, or all of them."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    if page == "shards.md":
        (blocks,) = [[block] for block in blocks if "ray start" in block]
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    return [shlex.split(line, comments=True) for line in lines]


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
    """Somebody who follows a page: what is exported stays, and the nodes run until the end."""

    def __init__(self, folder: Path, variables: dict[str, str], store: ObjectStore, cohort: Path) -> None:
        self._folder, self._variables, self._store, self._cohort = folder, variables, store, cohort
        self._port, self._dashboard = free_port(), free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._head = ""

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
        """A node, by the page's command: the head, or another one that joins it."""
        # Ports of its own, and in the foreground, so that it can be ended without touching other clusters.
        options = ["--block", "--num-cpus=1", f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
        if "--head" in words:
            options += [f"--port={self._port}", f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={free_port()}"]
        words = [word.replace("HEAD:6379", self._head) for word in words]
        log = self._folder / f"node{len(self._nodes)}.log"
        with log.open("w") as file:
            node = subprocess.Popen(
                [*words, *options], env=self._variables, stdout=file, stderr=file, start_new_session=True, cwd=ROOT
            )
        self._nodes.append(node)
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (text := log.read_text()):
            assert node.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.3)
        if "--head" in words:
            (self._head,) = set(re.findall(r"ray start --address='([^']+)'", text))
        status = ["ray", "status", "--address", self._head]
        while f"/{len(self._nodes)}.0 CPU" not in (found := self._say(status)):
            assert time.monotonic() < deadline, found
            time.sleep(0.3)

    def _say(self, words: list[str]) -> str:
        done = subprocess.run(words, env=self._variables, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    @property
    def nodes(self) -> int:
        """How many were started."""
        return len(self._nodes)

    def end(self) -> None:
        for node in reversed(self._nodes):
            os.killpg(node.pid, signal.SIGTERM)
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)


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
    assert cluster.nodes == (2 if page == "nsrr.md" else 1)
    assert s3.contents(f"{key}/{out}")["dataset.json"] == (tmp_path / "here" / "dataset.json").read_bytes()


def register_untrained(store: str, folder: Path, downstream: dict[str, Path]) -> None:
    """What the jobs of nsrr.md find of one another: encoders of the size that they train, and small models of tasks."""
    for name in ("eeg", "eog", "emg", "ecg", "resp", "psg"):
        # The heads take whatever encoder there is, the whole model only those of its own size.
        size, called = ("small", "synthsleepnet") if name == "psg" else ("8gpu", f"neuronet-{name}")
        module = build_model(read_yaml(config_root() / f"pretrain/{name}-{size}.yaml")["model"])
        write_package(folder / called, module, {"model": model_config(module)}, "card")
        register_champion(store, f"sleepfm-{called}", folder / called, {})
    for task, package in downstream.items():
        register_champion(store, f"sleepfm-{task}", package, {"val/kappa": 0.5})


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_what_needs_gpus_starts_on_paper(
    cohort: Path, downstream_packages: dict[str, Path], s3: ObjectStore, tmp_path: Path
) -> None:
    """The commands of nsrr.md from pretraining to a scored night, one after the other in one folder."""
    nights = [make_night(f"night{number}", 48, seed=number) for number in range(12)]
    shards = s3.upload(make_dataset(tmp_path / "set", nights, per_shard=4).path, f"documented/{tmp_path.name}/shards/shhs")
    variables = fresh(tmp_path / "home")
    run: list[str] = []
    # The models take gigabytes, which are not kept with the test's folder.
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        work = Path(folder)
        (work / "runs").mkdir()
        (work / "night.edf").write_bytes(next(cohort.rglob("*.edf")).read_bytes())
        register_untrained(f"sqlite:///{work}/runs/mlflow.db", work / "packages", downstream_packages)
        for words in documented("nsrr.md", "bash"):
            if words[0] == "export":
                assert words[1] == "SHARDS=s3://bucket/shards/shhs"
                continue
            line = [word.replace("$SHARDS", shards) for word in words]
            job = line[1] in ("pretrain", "finetune")
            if job:
                line += ["--dry-run", "--processes", "8"]
            if line[1] == "pretrain":
                # These nights are too few for a whole step of `val`.
                line += ["data.validation_items=0"]
            done = subprocess.run(line, cwd=work, env=variables, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            assert not job or ("8 x H200" in done.stdout and shards in done.stdout), done.stdout
            run.append(line[1])
        assert (work / "scored" / "night" / "hypnodensity.csv").exists()
    assert run == [*["pretrain"] * 6, *["finetune"] * 3, "models", "score"]
