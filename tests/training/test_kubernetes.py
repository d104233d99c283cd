"""``launch/kubernetes/train.yaml`` as a cluster runs it, without one: its pods are processes with networks, names and process
numbers of their own, and what makes them anew follows the file's rules.

What Kubernetes does is taken from its documentation of Jobs (Indexed completion mode, Pod failure policy) and of pods (DNS for
Services and Pods, termination): a pod keeps its number and its name, and gets another address each time it is made.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hosts import LONG, PLAIN, Host, assert_losses, networks, reach, seconds_until
from launching import CONFIG, TOY, launch, trace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "launch" / "kubernetes" / "train.yaml"
# A container's first process, whose number is 1, under the pod's name.
CONTAINER = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
NAMED = 'hostname "$0" && exec "$@"'


class Cluster:
    """The Job of the shipped file in ``folder``, with the toy stage in place of ``launch/pretrain.py``.

    Attributes:
        pods: the last pod of each number.
        made: how many pods each number has had.
        failures: those that count against ``backoffLimit``.
        ended: ``Complete`` or ``Failed``, once it is.
    """

    def __init__(self, folder: Path, prefixes: tuple[list[str], list[str]], *arguments: str, **variables: str) -> None:
        service, job = list(yaml.safe_load_all(SHIPPED.read_text()))
        self.spec, self.name = job["spec"], job["metadata"]["name"]
        self.domain = service["metadata"]["name"]
        pod = self.spec["template"]["spec"]
        self.container = pod["containers"][0]
        self.grace = pod["terminationGracePeriodSeconds"]
        self.folder, self.prefixes, self.variables = folder, prefixes, variables
        words = self.container["command"]
        start = words.index("launch/pretrain.py")
        # The stage, its configuration and arguments are the user's; what comes before is ours.
        self.command = [*words[:start], str(TOY), "toy.yaml", *arguments]
        (folder / "toy.yaml").write_text(CONFIG)
        if not (folder / "launch").exists():
            (folder / "launch").symlink_to(REPOSITORY / "launch")
        self.pods: dict[int, Host] = {}
        self.done: set[int] = set()
        self.disrupted: set[int] = set()
        self.made = [0] * self.spec["completions"]
        self.failures, self.ended = 0, ""
        for number in range(self.spec["completions"]):
            self.make(number)

    def make(self, number: int) -> None:
        """A pod with ``number``, at an address that no pod had before."""
        self.made[number] += 1
        address = f"10.77.{number + 1}.{self.made[number]}"
        inside = self.prefixes[number]
        for words in (["addr", "flush", "dev", "cable"], ["addr", "add", f"{address}/16", "dev", "cable"]):
            assert os.system(" ".join([*inside, "ip", *words])) == 0
        self.publish(number, address)
        name = f"{self.name}-{number}"
        container = [*inside, *CONTAINER, NAMED, name, *self.command]
        self.pods[number] = Host(self.folder, f"{name}.{self.made[number]}", container, self.environment(number))

    def publish(self, number: int, address: str) -> None:
        """What a headless Service does: the pod's name leads to its address, for every pod. Old lines stay nowhere."""
        name = f"{self.name}-{number}"
        for space in (words[-1] for words in self.prefixes):
            hosts = Path("/etc/netns") / space / "hosts"
            kept = [line for line in hosts.read_text().splitlines() if name not in line.split()]
            # Into the same file: it is mounted over /etc/hosts.
            hosts.write_text("\n".join([*kept, f"{address} {name}.{self.domain} {name}"]) + "\n")

    def environment(self, number: int) -> dict[str, str]:
        """The container's variables, with one process where the file has a GPU's eight."""
        given: dict[str, Any] = {item["name"]: item for item in self.container["env"]}
        index = given["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        found = {"NODES": given["NODES"]["value"], "NODE_RANK": str(number), "PROCESSES": "1"}
        return found | {"PYTHON": sys.executable} | self.variables

    def first_process(self, number: int) -> psutil.Process:
        """The container's process 1: what ``unshare`` has started."""
        deadline = time.monotonic() + 20
        while not (children := psutil.Process(self.pods[number].process.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return children[0]

    def delete(self, number: int) -> None:
        """``kubectl delete pod``, an eviction, a drained node: SIGTERM to process 1 alone, which has the grace period."""
        self.disrupted.add(number)
        self.first_process(number).send_signal(signal.SIGTERM)

    def lose(self, number: int) -> None:
        """As when its node has no power: everything in the container ends at once."""
        self.disrupted.add(number)
        self.first_process(number).kill()
        self.pods[number].wait()

    def control(self, hold: Callable[[], bool] = lambda: False) -> None:
        """What the Job's controller does about pods that have ended; none is made anew while ``hold``."""
        for number, pod in self.pods.items():
            status = pod.process.poll()
            if number in self.done or status is None or self.ended:
                continue
            if status == 0:
                self.done.add(number)
                if len(self.done) == self.spec["completions"]:
                    self.ended = "Complete"
                continue
            action = self.action(number, status)
            if action == "FailJob" or self.failures > self.spec["backoffLimit"]:
                self.ended = "Failed"
            elif not hold():
                self.failures += action == "Count"
                self.disrupted.discard(number)
                self.make(number)

    def action(self, number: int, status: int) -> str:
        """Of the first rule of the file's policy that fits a pod that has failed."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if "onExitCodes" in rule:
                assert rule["onExitCodes"]["operator"] == "In"
                assert rule["onExitCodes"]["containerName"] == self.container["name"]
                if status in rule["onExitCodes"]["values"]:
                    return str(rule["action"])
            elif number in self.disrupted:
                assert rule["onPodConditions"] == [{"type": "DisruptionTarget"}]
                return str(rule["action"])
        return "Count"

    def until_ended(self, seconds: float = 600) -> str:
        deadline = time.monotonic() + seconds
        while not self.ended:
            assert time.monotonic() < deadline, self.said()
            self.control()
            time.sleep(0.1)
        return self.ended

    def said(self) -> str:
        """By all pods, each under its name."""
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob(f"{self.name}-*.log")))

    def close(self) -> None:
        for pod in self.pods.values():
            if pod.process.poll() is None:
                pod.signal_all(signal.SIGKILL)
                pod.process.wait()


Start = Callable[..., Cluster]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the Job in the test's folder."""
    with networks() as prefixes:
        for space in (words[-1] for words in prefixes):
            hosts = Path("/etc/netns") / space / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n")
        started: list[Cluster] = []

        def begin(*arguments: str, **variables: str) -> Cluster:
            started.append(Cluster(tmp_path, prefixes, *arguments, **variables))
            return started[-1]

        try:
            yield begin
        finally:
            for cluster in started:
                cluster.close()
            for space in (words[-1] for words in prefixes):
                (Path("/etc/netns") / space / "hosts").unlink()
                (Path("/etc/netns") / space).rmdir()


@pytest.mark.parametrize("number", [0, 1])
def test_a_deleted_pod_saves_and_the_job_goes_on_with_new_pods(start: Start, tmp_path: Path, number: int) -> None:
    assert launch(tmp_path, 2, *LONG).returncode == 0
    cluster = start(*LONG, "train.output=pods")
    reach(tmp_path, "pods", 6, list(cluster.pods.values()))
    began = time.monotonic()
    cluster.delete(number)
    cluster.pods[number].wait()
    assert time.monotonic() - began < cluster.grace
    left = trace(tmp_path, "pods")[-1]["step"]
    assert 6 <= left < 24
    assert (tmp_path / "pods" / "checkpoints" / f"step-{left:08d}").is_dir()
    assert cluster.until_ended() == "Complete", cluster.said()
    assert (cluster.made, cluster.failures) == ([2, 2], 0)
    assert trace(tmp_path, "pods") == trace(tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_pod_is_done_without_until_another_one_takes_its_place(start: Start, tmp_path: Path, number: int) -> None:
    slowly = ("train.steps=24", "toy.seconds=2", *PLAIN)
    assert launch(tmp_path, 2, *LONG, *PLAIN, "train.output=plain").returncode == 0
    cluster = start(*slowly, "train.output=pods", REGROUP_SECONDS="10")
    first = seconds_until(tmp_path, "pods", 1, list(cluster.pods.values()))
    reach(tmp_path, "pods", 4, list(cluster.pods.values()))
    cluster.lose(number)
    step, survivor = trace(tmp_path, "pods")[-1]["step"], cluster.pods[1 - number]
    seconds = seconds_until(tmp_path, "pods", step + 1, [survivor])
    print(f"pod {number} lost at step {step}; the first new step after {seconds:.0f} s, of a start after {first:.0f} s")
    assert seconds < 2 * first + 20
    # Its node was lost too: a new one needs a while.
    assert cluster.until_ended() == "Complete", cluster.said()
    assert cluster.failures == 0
    assert cluster.made[number] == 2 and cluster.made[1 - number] == 1, cluster.said()
    assert "start 2 on 1 nodes" in survivor.log.read_text()
    assert "start 3 on 2 nodes" in survivor.log.read_text() and "start 3 on 2 nodes" in cluster.pods[number].log.read_text()
    assert_losses(tmp_path, "pods")


def test_a_pod_that_comes_when_the_others_are_done_finds_the_run_done(start: Start, tmp_path: Path) -> None:
    assert launch(tmp_path, 2, *LONG, *PLAIN, "train.output=plain").returncode == 0
    cluster = start(*LONG, *PLAIN, "train.output=pods")
    reach(tmp_path, "pods", 10, list(cluster.pods.values()))
    cluster.lose(1)
    while 0 not in cluster.done:
        cluster.control(hold=lambda: True)
        time.sleep(0.1)
    assert_losses(tmp_path, "pods")
    kept = (tmp_path / "pods" / "trace.jsonl").read_bytes()
    # It waits for ten minutes for a pod that will not come, then looks.
    assert cluster.until_ended(900) == "Complete", cluster.said()
    assert cluster.made == [1, 2]
    assert (tmp_path / "pods" / "trace.jsonl").read_bytes() == kept


def test_what_is_refused_fails_the_job_at_once(start: Start, tmp_path: Path) -> None:
    cluster = start(*LONG, "train.stepz=1", "train.output=pods")
    assert cluster.until_ended() == "Failed", cluster.said()
    assert cluster.made == [1, 1]
    assert "train.stepz" in cluster.said()
