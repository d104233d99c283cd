"""Files for clusters: whole, and what must agree in them agrees."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sleepfm.errors import LostRankError
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ["node.sh", "slurm/task.sh", "slurm/train.sbatch"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(LAUNCH / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_node_says_what_it_misses() -> None:
    command = ["bash", str(LAUNCH / "node.sh"), "x.py"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "NODES: names of all nodes" in done.stderr
    given = {"PATH": "/usr/bin:/bin", "NODES": "a", "NODE_RANK": "0", "PROCESSES": "1"}
    done = subprocess.run(command[:2], env=given, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_the_batch_file_requeues_what_may_go_on() -> None:
    text = (LAUNCH / "slurm/train.sbatch").read_text()
    # The second a bounded number of times.
    assert re.findall(r'"\$status" -eq (\d+)', text) == [str(PREEMPTED_STATUS), str(LostRankError.exit_status)]
    assert '[ "$status" -eq 69 ] && [ "$restarts" -lt "${MAX_REQUEUES:-5}" ]' in text
    # Else Slurm 22.05 and later run each task on one processor, and a lost node ends all of the job.
    assert 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK' in text
    assert "#SBATCH --no-kill" in text and "srun --no-kill --kill-on-bad-exit=0 --wait=0 " in text
    assert "#SBATCH --requeue" in text
    # Without `B:`, which would signal the batch shell alone.
    assert re.search(r"^#SBATCH --signal=USR1@\d+$", text, re.MULTILINE)
    assert "#SBATCH --ntasks-per-node=1" in text


def test_the_kubernetes_job_names_as_many_nodes_as_it_has_pods() -> None:
    service, job = documents("kubernetes/train.yaml")
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == ("v1", "Service", "batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    container = pod["containers"][0]
    environment = {item["name"]: item for item in container["env"]}
    nodes = environment["NODES"]["value"].split()
    assert spec["completions"] == spec["parallelism"] == len(nodes)
    assert nodes == [f"{name}-{index}.{pod['subdomain']}" for index in range(len(nodes))]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert spec["completionMode"] == "Indexed"
    assert "job-completion-index" in environment["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert int(environment["PROCESSES"]["value"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    ignored = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert ignored == [[PREEMPTED_STATUS], [2]]
    # Kubernetes takes a podFailurePolicy only with this.
    assert pod["restartPolicy"] == "Never"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for word in container["command"][1:]:
        assert (LAUNCH.parent / word).is_file(), word


def test_the_ray_job_builds_into_a_folder_that_every_pod_has() -> None:
    (job,) = documents("kuberay/shards.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    source, out = job["spec"]["entrypoint"].removeprefix("python -m shards build ").split()
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert {source, str(Path(out).parent)} <= mounts
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    # It grows from none, on a head that takes no task.
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 1


def test_the_image_is_the_one_that_the_cluster_files_name() -> None:
    root = LAUNCH.parent
    text = (root / "Dockerfile").read_text()
    files = [LAUNCH / "kubernetes" / "train.yaml", LAUNCH / "kuberay" / "shards.yaml"]
    images = {image for file in files for image in re.findall(r"image: (\S+)", file.read_text())}
    folders = {folder for file in files for folder in re.findall(r"workingDir: (\S+)", file.read_text())}
    assert images == set(re.findall(r"docker build -t (\S+) \.", text))
    assert folders == set(re.findall(r"^WORKDIR (\S+)", text, re.MULTILINE))
    copied = {word for words in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in words.split()}
    assert all((root / name).exists() for name in copied)
    assert copied == set(re.findall(r"^!(\S+)$", (root / ".dockerignore").read_text(), re.MULTILINE))
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    assert set(re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)[0].split(",")) <= set(setup["options.extras_require"])
    # The same torch as `make` installs.
    assert set(re.findall(r"torch==\S+", text)) == set(re.findall(r"torch==\S+", (root / "Makefile").read_text()))


def test_the_linter_of_dockerfiles_finds_nothing_in_ours() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed: its package is for Linux on x86-64")
    done = subprocess.run([hadolint, str(LAUNCH.parent / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
