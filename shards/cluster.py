"""Ray: a cluster to run on, and tasks on it with bounded numbers in flight."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.config import BuildConfig
from shards.plan import ShardPlan
from shards.task import Outcome, build_shard
from sleepfm.errors import ConfigError, ShardError, SleepFMError, UsageError
from sleepfm.signals.files import is_remote, location

# Set before Ray is imported. Workers inherit the thread limit: a task is one core's work.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# No data passes through the object store, only a task's arguments and its summary; this is Ray's minimum.
OBJECT_STORE_BYTES = 80 * 2**20
# Enough to keep every worker busy while a finished task is replaced; the rest waits in the driver as plain names.
IN_FLIGHT_PER_CPU = 2


def in_ray_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_paths(*paths: str) -> None:
    """A submitted job runs in a copy of the working folder, where a relative path would be lost with it.

    Raises:
        UsageError: in a Ray job, a relative path.
    """
    for path in paths:
        if in_ray_job() and not is_remote(place := location(path)) and not place.is_absolute():
            raise UsageError(
                f"{path}: relative, but a Ray job runs in a temporary folder of the cluster; give an absolute path "
                "that all nodes share"
            )


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """The ``ray`` module, connected to ``RAY_ADDRESS`` if that is set, else to a new cluster of ``workers`` CPUs here.

    A process that is connected already stays so, and its cluster is used.

    Raises:
        ConfigError: there is no cluster at ``RAY_ADDRESS``.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    except ConnectionError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster there ({error}); start one or unset it") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_shards(
    ray: Any,
    shards: Sequence[ShardPlan],
    source: Path,
    out: Path,
    config: BuildConfig,
    build: str,
    report: Callable[[Outcome | None], None],
) -> None:
    """Build ``shards``, one Ray task each; ``report`` gets every outcome, and None about once a second.

    Raises:
        ConfigError: no node of the cluster can hold a task.
        ShardError: the output cannot be written to (at once), or tasks failed (after all others ran).
    """
    memory = config.ray.task_memory_mb * 2**20
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("memory", 0) >= memory and node.get("CPU", 0) >= 1 for node in nodes):
        raise ConfigError(
            f"ray.task_memory_mb={config.ray.task_memory_mb}: no node of the Ray cluster offers a CPU and that much "
            f"memory (largest: {max((n.get('memory', 0) for n in nodes), default=0) / 2**20:.0f} MB); lower it"
        )
    remote = ray.remote(num_cpus=1, memory=memory, max_retries=config.ray.retries)(build_shard)
    limit = int(IN_FLIGHT_PER_CPU * sum(node.get("CPU", 0) for node in nodes))
    waiting = iter(shards)
    running: dict[Any, ShardPlan] = {}
    failures: list[str] = []
    while True:
        while len(running) < limit and (shard := next(waiting, None)) is not None:
            running[remote.remote(source, out, shard, config, build)] = shard
        if not running:
            break
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        report(None)
        for reference in ready:
            shard = running.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SleepFMError):
                    raise ShardError(str(error.cause)) from None
                failures.append(f"{shard.name}: {error}")
            except ray.exceptions.RayError as error:
                failures.append(f"{shard.name}: {error}")
            else:
                report(outcome)
    if failures:
        raise ShardError(
            f"{len(failures)} of {len(shards)} shards failed, the others are finished and kept; "
            f"the first, with its cause:\n{failures[0]}"
        )
