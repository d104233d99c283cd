"""Ray: a cluster to run on, and the tasks of a build on it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shards.build_config import BuildConfig
from shards.interruption import listen_again
from shards.lease import Builder
from shards.plan import ShardPlan
from shards.schedule import IN_FLIGHT_PER_CPU, News, Schedule, Work
from shards.task import Outcome, Refusal, build_shard
from shards.time_limit import time_limit
from shards.whose import Whose
from sleepfm.errors import ConfigError, ShardError, UsageError
from sleepfm.heap import keep_freed_memory
from sleepfm.signals.discover import Discovered
from sleepfm.signals.files import is_remote, location

__all__ = ["IN_FLIGHT_PER_CPU", "check_paths", "cluster", "in_ray_job", "run_shards", "run_task"]

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
# How a user says who may use a cluster; see Ray's documentation of token authentication.
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ANSWER_SECONDS = 20
# Options of gRPC, for a channel without a proxy, and a question that every head of a cluster answers.
_DIRECT = (("grpc.enable_http_proxy", 0),)
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
# A night of ten hours takes less than this, and a worker that holds it free still holds less than Ray is asked for. What a longer
# one needs goes back to the system after it.
KEPT_BYTES = 256 * 2**20
_LONGEST_REASON = 300


def in_ray_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def joined_cluster() -> str:
    """Address of the cluster that :func:`cluster` will use, empty where it starts one of its own."""
    # A process that is connected stays so; Ray is not imported for the question.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def check_paths(*paths: str) -> None:
    """A submitted job runs in a copy of the working folder, where a relative path would be lost with it.

    Raises:
        UsageError: in a Ray job, a relative path.
    """
    for path in paths:
        if in_ray_job() and not is_remote(place := location(path)) and not place.is_absolute():
            raise UsageError(
                f"{path}: is a relative path, but a Ray job runs in a temporary folder of the cluster; give an absolute path "
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
    place = ""
    if address not in (None, "", "local"):
        place = _require_answer(address)
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
        if place and _asks_for_token(place):
            raise ConfigError(
                f"RAY_ADDRESS={address}: the Ray cluster there asks for a token, and this process has none or another one; set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (default: ~/.ray/auth_token), "
                "or unset RAY_ADDRESS to use only this machine"
            ) from error
        if address:
            raise ConfigError(
                f"RAY_ADDRESS={address}: cannot work on the Ray cluster there ({reason}); unset it for a local cluster"
            ) from error
        if isinstance(error, OSError):
            raise ConfigError(_folder_of_sockets(error)) from error
        raise ShardError(f"Ray did not start ({reason}); if the machine is busy, run the same command again") from error
    try:
        listen_again()
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> str:
    """Host and port of the cluster at ``address``; raises :class:`ConfigError` unless something that speaks gRPC, as Ray does,
    listens there.

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
    silent = f"RAY_ADDRESS={address}: no Ray cluster answers there"
    hint = "start one (ray start --head), or unset RAY_ADDRESS to use only this machine"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        waited = isinstance(error, TimeoutError)
        why = f" within {ANSWER_SECONDS} s" if waited else f" ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"{silent}{why}; {hint}") from error
    if _uses_tls():
        return place
    import grpc

    with grpc.insecure_channel(place, options=_DIRECT) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise ConfigError(f"{silent} within {ANSWER_SECONDS} s (something else listens there); {hint}") from error
    return place


def _uses_tls() -> bool:
    """Whether Ray's processes speak TLS with each other."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _asks_for_token(place: str) -> bool:
    """Whether the cluster at ``place``, a host and its port, refuses a question that comes without a token.

    Ray tells that on its own log alone; what it raises is that it cannot connect.
    """
    if _uses_tls():
        return False
    import grpc

    with grpc.insecure_channel(place, options=_DIRECT) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


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
    report: Callable[[News], object],
    known: Mapping[str, Discovered] = MappingProxyType({}),
    files: Mapping[str, str] = MappingProxyType({}),
    refused: Mapping[str, Refusal] = MappingProxyType({}),
    builder: Builder | None = None,
    whose: Mapping[str, Whose] = MappingProxyType({}),
) -> None:
    """Build ``shards``, one Ray task each, a few at a time; the others wait here as plain names.

    Args:
        report: gets what became of every shard as it is known, lines for the user, and None about once a second.
        known, files, refused, builder, whose: as for :func:`shards.task.build_shard`.

    Raises:
        ConfigError: no node of the cluster can hold a task.
        StorageError: the output cannot be written to; no further task starts.
        ShardError: tasks failed, and all others ran; or there was no node for too long.
    """
    Schedule(ray, Work(source, out, config, build, known, files, refused, builder, whose), run_task, report).run(shards)


def run_task(
    source: Path,
    out: Path,
    shard: ShardPlan,
    config: BuildConfig,
    build: str,
    known: Mapping[str, Discovered],
    files: Mapping[str, str] = MappingProxyType({}),
    refused: Mapping[str, Refusal] = MappingProxyType({}),
    builder: Builder | None = None,
    whose: Mapping[str, Whose] = MappingProxyType({}),
    hand_over: bool = False,
) -> Outcome:
    """:func:`shards.task.build_shard` with its log in the worker's own, where the last line names what it died of, and within
    ``ray.task_timeout_s`` a recording. The worker keeps the memory that a night frees for the next one.
    """
    keep_freed_memory(KEPT_BYTES)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("shards").setLevel(logging.INFO)
    with time_limit(config.ray.task_timeout_s) as restart:
        return build_shard(source, out, shard, config, build, known, files, refused, builder, restart, whose, hand_over)
