"""Ray: a cluster to run on, and tasks on it with bounded numbers in flight."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.config import BuildConfig, chosen_cohort
from shards.memory import BASE_BYTES, task_memory, wanted_labels
from shards.plan import ShardPlan
from shards.task import Failure, Outcome, build_shard
from sleepfm.errors import ConfigError, ShardError, SleepFMError, UsageError
from sleepfm.signals.files import is_remote, location

# Set before Ray is imported. Workers inherit the thread limit: a task is one core's work.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A recording that no node can hold ends as a failure with a name; Ray would try it for ever.
    "RAY_task_oom_retries": "3",
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
        ShardError: the new cluster did not start.
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
    except Exception as error:
        # Ray has no class of its own for processes that do not come up within half a minute.
        raise ShardError(f"Ray did not start ({error}); if the machine is busy, run the same command again") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_shards(
    ray: Any,
    shards: Iterable[ShardPlan],
    source: Path,
    out: Path,
    config: BuildConfig,
    build: str,
    report: Callable[[Outcome | Failure | None], None],
) -> None:
    """Build ``shards``, one Ray task each, a few at a time; the others wait here as plain names.

    Args:
        report: gets what became of every shard as it is known, and None about once a second.

    Raises:
        ConfigError: no node of the cluster can hold a task.
        StorageError: the output cannot be written to; no further task starts.
        ShardError: tasks failed; all others ran.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    memory_of = _memory(nodes, source, config)
    limit = max(1, int(IN_FLIGHT_PER_CPU * sum(node.get("CPU", 0) for node in nodes)))
    remote = ray.remote(num_cpus=1, max_retries=config.ray.retries)(run_task)
    waiting = iter(shards)
    running: dict[Any, ShardPlan] = {}
    failed: list[Failure] = []
    stop: SleepFMError | None = None
    while True:
        while stop is None and len(running) < limit and (shard := next(waiting, None)) is not None:
            running[remote.options(memory=memory_of(shard)).remote(source, out, shard, config, build)] = shard
        if not running:
            break
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        report(None)
        for reference in ready:
            shard = running.pop(reference)
            try:
                report(ray.get(reference))
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, SleepFMError):
                    # What is at work may finish, so that nothing is written once this has returned.
                    stop = stop or cause
                    continue
                failed.append(Failure(shard.name, tuple(entry.path for entry in shard.entries), str(error)))
                report(failed[-1])
    if stop is not None:
        raise stop
    if failed:
        raise ShardError(
            f"{len(failed)} shards failed, the others are finished and kept; run the same command to try again; "
            f"the first, with its cause:\n{failed[0].shard}: {failed[0].reason}"
        )


def run_task(source: Path, out: Path, shard: ShardPlan, config: BuildConfig, build: str) -> Outcome:
    """:func:`shards.task.build_shard` with its log in the worker's own, where the last line names what it died of."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("shards").setLevel(logging.INFO)
    return build_shard(source, out, shard, config, build)


def _memory(nodes: list[dict[str, float]], source: Path, config: BuildConfig) -> Callable[[ShardPlan], int]:
    """What each shard's task asks of its node: as configured, or by its recordings and at most all that a node has."""
    most = int(max((node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1), default=0))
    asked = config.ray.task_memory_mb
    least = asked * 2**20 if isinstance(asked, int) else BASE_BYTES
    if most < least:
        raise ConfigError(
            f"ray.task_memory_mb={asked}: no node of the Ray cluster offers a CPU and {least / 2**20:.0f} MB of memory "
            f"(largest: {most / 2**20:.0f} MB); lower it"
        )
    if isinstance(asked, int):
        return lambda shard: least
    labels = wanted_labels(chosen_cohort(config))
    return lambda shard: min(most, task_memory((source / entry.path for entry in shard.entries), labels))
