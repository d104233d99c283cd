"""Ray: a cluster to run on, and tasks on it with bounded numbers in flight."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shards.build_config import BuildConfig, chosen_cohort
from shards.lease import Builder
from shards.memory import BASE_BYTES, read_extents, task_memory, wanted_labels
from shards.plan import ShardPlan
from shards.task import Failure, Outcome, build_shard
from sleepfm.errors import ConfigError, ShardError, SleepFMError, UsageError
from sleepfm.signals.examine import Discovered
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
# How a user says who may use a cluster; see Ray's documentation of token authentication.
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ANSWER_SECONDS = 20
_LONGEST_REASON = 300
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
        ConfigError: there is no cluster at ``RAY_ADDRESS``, or it does not take this process; or the folder for Ray's sockets
            cannot be used.
        ShardError: the new cluster did not start.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    address = os.environ.get("RAY_ADDRESS")
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address not in (None, "", "local"):
        _require_answer(address)
    elif not any(name in os.environ for name in _AUTHENTICATION):
        # Ray asks for a token on a cluster that it starts, and would leave a new one in the user's home, after which a plain
        # `ray start` makes clusters that `ray job submit` cannot use. This one is known to this process and its children alone.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
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
    except Exception as error:
        # Ray has no class of its own for processes that do not come up within half a minute.
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        if address:
            raise ConfigError(
                f"RAY_ADDRESS={address}: cannot work on the Ray cluster there ({reason}); unset it for a local cluster"
            ) from error
        if isinstance(error, OSError):
            raise ConfigError(_folder_of_sockets(error)) from error
        raise ShardError(f"Ray did not start ({reason}); if the machine is busy, run the same command again") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise :class:`ConfigError` unless something that speaks gRPC, as Ray does, listens at ``address``.

    Ray itself asks a host that does not answer for a quarter of an hour.
    """
    place = address.removeprefix("ray://")
    if address == "auto":
        # A cluster that was killed leaves its address behind.
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address(address)
        except (ConnectionError, ValueError):
            found = None
        if found is None:
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster found here; start one (ray start --head), or unset it")
        place = found
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or "/" in place:
        raise ConfigError(
            f"RAY_ADDRESS={address}: expected HOST:PORT, ray://HOST:PORT or auto; an http address is for `ray job submit`"
        )
    hint = f"no Ray cluster answers there within {ANSWER_SECONDS} s; start one (ray start --head), or unset it for one here"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: {hint} ({getattr(error, 'strerror', None) or error})") from error
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    import grpc

    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise ConfigError(f"RAY_ADDRESS={address}: {hint} (something else listens there)") from error


def _folder_of_sockets(error: OSError) -> str:
    """What to say where Ray cannot make its files and sockets."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    if "AF_UNIX" in str(error):
        return (
            f"{name}={folder}: too long for Ray, whose sockets below it may have paths of at most 107 bytes; set RAY_TMPDIR to "
            "a shorter folder, such as /tmp"
        )
    return f"{name}={folder}: Ray cannot keep its files there ({error.strerror or error}); set RAY_TMPDIR to another folder"


def run_shards(
    ray: Any,
    shards: Iterable[ShardPlan],
    source: Path,
    out: Path,
    config: BuildConfig,
    build: str,
    report: Callable[[Outcome | Failure | None], None],
    known: Mapping[str, Discovered] = MappingProxyType({}),
    files: Mapping[str, str] = MappingProxyType({}),
    builder: Builder | None = None,
) -> None:
    """Build ``shards``, one Ray task each, a few at a time; the others wait here as plain names.

    Args:
        report: gets what became of every shard as it is known, and None about once a second.
        known, files, builder: as for :func:`shards.task.build_shard`.

    Raises:
        ConfigError: no node of the cluster can hold a task.
        StorageError: the output cannot be written to; no further task starts.
        ShardError: tasks failed; all others ran.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = _needs(nodes, source, config, known, files)
    limit = max(1, int(IN_FLIGHT_PER_CPU * sum(node.get("CPU", 0) for node in nodes)))
    remote = ray.remote(num_cpus=1, max_retries=config.ray.retries)(run_task)
    waiting = iter(shards)
    running: dict[Any, ShardPlan] = {}
    failed: list[Failure] = []
    stop: SleepFMError | None = None
    while True:
        while stop is None and len(running) < limit and (shard := next(waiting, None)) is not None:
            memory, handed = needs(shard)
            named = {entry.path: files[entry.path] for entry in shard.entries if entry.path in files}
            running[remote.options(memory=memory).remote(source, out, shard, config, build, handed, named, builder)] = shard
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


def run_task(
    source: Path,
    out: Path,
    shard: ShardPlan,
    config: BuildConfig,
    build: str,
    known: Mapping[str, Discovered],
    files: Mapping[str, str] = MappingProxyType({}),
    builder: Builder | None = None,
) -> Outcome:
    """:func:`shards.task.build_shard` with its log in the worker's own, where the last line names what it died of."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("shards").setLevel(logging.INFO)
    return build_shard(source, out, shard, config, build, known, files, builder)


def _needs(
    nodes: list[dict[str, float]],
    source: Path,
    config: BuildConfig,
    known: Mapping[str, Discovered],
    files: Mapping[str, str],
) -> Callable[[ShardPlan], tuple[int, dict[str, Discovered]]]:
    """What each shard's task asks of its node, and what is handed to it of what was learnt of its recordings.

    The memory is as configured, or what its recordings need and at most all that a node has.
    """
    most = int(max((node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1), default=0))
    asked = config.ray.task_memory_mb
    least = asked * 2**20 if isinstance(asked, int) else BASE_BYTES
    if most < least:
        raise ConfigError(
            f"ray.task_memory_mb={asked}: no node of the Ray cluster offers a CPU and {least / 2**20:.0f} MB of memory "
            f"(largest: {most / 2**20:.0f} MB); lower it"
        )
    labels = wanted_labels(chosen_cohort(config))

    def needs(shard: ShardPlan) -> tuple[int, dict[str, Discovered]]:
        paths = [files.get(entry.path, entry.path) for entry in shard.entries]
        if isinstance(asked, int):
            return least, {path: known[path] for path in paths if path in known}
        extents = read_extents(source, paths, known)
        handed = {path: replace(known.get(path, Discovered()), header=header) for path, (header, _) in extents.items()}
        return min(most, task_memory(extents.values(), labels)), handed

    return needs
