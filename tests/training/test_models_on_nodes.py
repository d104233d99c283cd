"""Two hosts that share a folder of runs and an MLflow server, and nothing else: registered models reach both."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from made_nights import make_dataset, make_night
from mlflow_server import Server
from ports import free_port
from test_hosts import CABLE, NODE, Host, networks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = NODE.parents[1]
NAMES = ("node-a", "node-b")
# A disk of its own, the runs that both see, and an empty folder where the others' files are.
ON_ITS_DISK = """
set -e
base=$1 name=$2
shift 2
hostname "$name"
mount --bind "$base/disks/$name" "$base/host"
mount --bind "$base/runs" "$base/host/runs"
for hidden in disks runs server; do mount -t tmpfs none "$base/$hidden"; done
cd "$base/host"
exec "$@"
"""
SMALL = ("train.passes=null", "train.steps=2", "train.validate_every=2", "train.global_batch=4", "train.warmup=1")
MODALITIES = ("eeg", "eog", "emg", "ecg")
ON_LOSS = ("data.validation_items=8", "monitor=none", "registry.metric=val/loss", "registry.mode=min")
CHAIN = {
    **{name: ("pretrain", f"pretrain/{name}-tiny", ON_LOSS) for name in MODALITIES},
    "multimodal": ("pretrain", "pretrain/multimodal-tiny", ON_LOSS),
    "context": ("pretrain", "pretrain/context-tiny", ("cache=cache", "model.length=10", "model.span=2")),
    "probe": ("probe", "downstream/probe-stage-tiny", ("cache=cache", "evaluate.resamples=0")),
    "finetune": (
        "finetune",
        "downstream/finetune-stage-tiny",
        ("encoder=models:/sleepfm-context@champion", "context.bidirectional=true", "evaluate.resamples=0"),
    ),
}


@dataclass
class Cluster:
    """Two hosts and a server, each with files of its own."""

    base: Path
    server: Server
    prefixes: list[list[str]]

    def disk(self, name: str) -> Path:
        return self.base / "disks" / name

    def job(self, stage: str, *more: str, processes: int = 1, cache: str = "") -> list[Host]:
        """A stage of the chain on both hosts, to its end; ``cache`` is below a host's own disk."""
        script, config, settings = CHAIN[stage]
        arguments = [str(ROOT / "launch" / f"{script}.py"), str(ROOT / "configs" / f"{config}.yaml"), *SMALL, *settings]
        arguments += ["data.path=data", f"train.output=runs/{stage}", *more]
        variables = CABLE | {
            "PROCESSES": str(processes),
            "MASTER_PORT": str(free_port()),
            "MLFLOW_TRACKING_URI": self.server.uri,
            "HOME": str(self.base / "host"),
            "TMPDIR": str(self.base / "host" / "tmp"),
            "XDG_CACHE_HOME": "",
            "SLEEPFM_CACHE": cache,
        }
        (self.base / "logs").mkdir(exist_ok=True)
        hosts, logs = [], Path(mkdtemp(prefix=f"{stage}-", dir=self.base / "logs"))
        for rank, (name, prefix) in enumerate(zip(NAMES, self.prefixes, strict=True)):
            command = [*prefix, "unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", ON_ITS_DISK]
            command += ["host", str(self.base), name, "bash", str(NODE), *arguments]
            hosts.append(Host(logs, name, command, variables | {"NODE_RANK": str(rank)}))
        for host in hosts:
            host.wait()
        return hosts


def statuses(hosts: list[Host]) -> list[int | None]:
    return [host.process.returncode for host in hosts]


def said(hosts: list[Host]) -> str:
    return "\n".join(host.log.read_text() for host in hosts)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "--uts", "true"]).returncode:
        pytest.skip("mount namespaces need root and the command unshare")
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("cluster")
    nights = [make_night(f"night{number}", 12, seed=number) for number in range(16)]
    data = make_dataset(base / "made", nights, per_shard=4).path
    for name in NAMES:
        shutil.copytree(data, base / "disks" / name / "data")
        for folder in ("tmp", "runs"):
            (base / "disks" / name / folder).mkdir()
    for folder in ("host", "runs"):
        (base / folder).mkdir()
    with networks() as prefixes:
        server = Server(base / "server", "10.77.0.1", prefixes[0])
        server.start()
        try:
            yield Cluster(base, server, list(prefixes))
        finally:
            server.kill()


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> Cluster:
    """With ``sleepfm-neuronet-eeg`` registered."""
    hosts = cluster.job("eeg")
    assert statuses(hosts) == [0, 0], said(hosts)
    return cluster


def test_the_whole_chain_runs_on_hosts_that_share_no_models(trained: Cluster) -> None:
    versions = []
    for stage in CHAIN:
        # Two ranks a host, of which one fetches.
        hosts = trained.job(stage, processes=2 if stage == "context" else 1)
        assert statuses(hosts) == [0, 0], said(hosts)
        result = json.loads((trained.base / "runs" / stage / "result.json").read_text())
        versions.append(f"{result['name']}:{result['version']}")
    assert versions[-3:] == ["sleepfm-context:1", "sleepfm-stage:1", "sleepfm-stage:2"]
    assert result["parents"] == ["sleepfm-context:1"]
    fetched = re.findall(r"(10\.77\.0\.\d):\d+ - \"GET \S*/(package-[\w-]+)/model\.safetensors", trained.server.log)
    # Four NeuroNets, SynthSleepNet for context and probe, and the context: once a host.
    assert len(set(fetched)) == len(fetched) == 12


def refused(hosts: list[Host], reason: str) -> None:
    """Both end with status 1, and rank 0 says why in one line."""
    assert statuses(hosts) == [1, 1], said(hosts)
    lines = [line for line in hosts[0].log.read_text().splitlines() if line.startswith("error")]
    assert len(lines) == 1 and re.search(reason, lines[0]), said(hosts)
    assert "Traceback" not in said(hosts)


def test_a_host_that_cannot_fetch_ends_the_job_and_is_named(trained: Cluster) -> None:
    cache = trained.disk("node-b") / "cache-of-b"
    cache.write_text("no folder")
    registered = "encoder=models:/sleepfm-neuronet-eeg@champion"
    hosts = trained.job("context", registered, "train.output=runs/refused", cache="cache-of-b")
    refused(hosts, r"host node-b \(rank 1\): .*cannot keep models:/sleepfm-neuronet-eeg/1 here.*set SLEEPFM_CACHE")


def test_a_folder_must_hold_the_same_package_on_every_host(trained: Cluster) -> None:
    shutil.copytree(trained.base / "runs" / "eeg" / "package", trained.disk("node-a") / "encoder")
    here = ("encoder=encoder", "train.output=runs/folder")
    refused(trained.job("context", *here), r"host node-b \(rank 1\): encoder: no such folder on this host.*copy it")
    other = shutil.copytree(trained.disk("node-a") / "encoder", trained.disk("node-b") / "encoder")
    with (other / "config.yaml").open("a") as file:
        file.write("note: another\n")
    refused(trained.job("context", *here), r"host node-b \(rank 1\): encoder: contains another model than the same folder on")
    shutil.copy(trained.disk("node-a") / "encoder" / "config.yaml", other)
    assert statuses(trained.job("context", *here)) == [0, 0]
