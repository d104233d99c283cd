"""Workers, nodes and drivers that die without a word: the same command finishes the job with the same bytes."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Place

# Kill points are random but the same in every run; the first of each kind on the shared cluster is in the fast suite.
SEED = 20_261_124
POINTS = {"driver": 7, "worker": 7, "node": 6}
# A shard of two of the tests' nights takes about this many seconds on a warm worker.
SHARD_SECONDS = 0.6
# Of a driver that was killed while it built into a URL; the next one waits for as long.
LEASE_SECONDS = 4


def points(kind: str) -> list[object]:
    """``(finished shards, further seconds)`` at which to kill, as pytest parameters."""
    rng = random.Random(f"{SEED} {kind}")
    drawn = [(rng.randrange(3), rng.uniform(0, SHARD_SECONDS)) for _ in range(POINTS[kind])]
    ids = [f"{shards}-{seconds:.3f}" for shards, seconds in drawn]
    return [
        pytest.param(*point, id=name, marks=pytest.mark.slow if number or kind == "node" else ())
        for number, (point, name) in enumerate(zip(drawn, ids, strict=True))
    ]


def arguments(cohort: Path, output: Place) -> list[object]:
    return ["build", cohort, output.out, "--cohort", "shhs1", "recordings_per_shard=2", f"store.lease_s={LEASE_SECONDS}"]


def finished(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("shards/shard-") and name.endswith(".json")]


def await_point(ended: Callable[[], bool], output: Place, shards: int, seconds: float) -> None:
    """Until the plan is made, so many shards are finished and so many seconds have passed, or the driver has ended."""
    while not ended() and not ("plan.json" in (names := output.names()) and len(finished(names)) >= shards):
        time.sleep(0.005)
    time.sleep(seconds)


def busy_worker(ancestor: int, ended: Callable[[], bool]) -> psutil.Process | None:
    """A process below ``ancestor`` that is at work on a shard; None once the driver has ended."""
    while not ended():
        for process in psutil.Process(ancestor).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith("ray::run_task"):
                    return process
        time.sleep(0.005)
    return None


@pytest.mark.parametrize(("shards", "seconds"), points("driver"))
def test_a_driver_can_be_killed(cohort, built, connection, output, place, run, start, shards, seconds):
    driver = start(arguments(cohort, output), connection.address)
    await_point(lambda: driver.poll() is not None, output, shards, seconds)
    driver.kill()
    driver.communicate()
    before = output.digests()
    if "dataset.json" not in before:
        assert "no dataset.json here" in run(["info", output.out]).stderr
    result = run(arguments(cohort, output))
    assert result.returncode == 0, result.stdout + result.stderr
    after = output.digests()
    assert after == place(built).digests()
    done = finished(before)
    assert len(done) >= shards and all(before[name] == after[name] for name in done)


@pytest.mark.parametrize(("shards", "seconds"), points("worker"))
def test_a_worker_can_be_killed(cohort, built, connection, output, place, run, shards, seconds):
    with ThreadPoolExecutor(1) as pool:  # a driver in this process finds its workers warm
        driver = pool.submit(run, arguments(cohort, output))
        await_point(driver.done, output, shards, 0.0)
        worker = busy_worker(connection.pid, driver.done)
        time.sleep(seconds)
        if worker is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        result = driver.result(timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert output.digests() == place(built).digests()


class Nodes:
    """Two nodes of one CPU each beside a head of none; one that is killed is replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # A node that stops answering is given up after two seconds instead of a quarter of a minute.
        patience = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patience})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_first(self) -> None:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def replace(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="module")
def nodes(s3) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        several = Nodes()
        yield several
        several.cluster.shutdown()


@pytest.mark.parametrize(("shards", "seconds"), points("node"))
def test_a_node_can_be_killed(cohort, built, nodes, output, place, start, shards, seconds):
    driver = start(arguments(cohort, output), nodes.cluster.address)
    await_point(lambda: driver.poll() is not None, output, shards, seconds)
    nodes.kill_first()
    stdout, stderr = driver.communicate(timeout=300)
    nodes.replace()
    assert driver.returncode == 0, stdout + stderr
    assert output.digests() == place(built).digests()
