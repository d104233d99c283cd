"""Whether every host of a cluster sees what a build reads and writes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from shards.lease import Builder
from sleepfm.errors import SleepFMError, StorageError, UsageError
from sleepfm.signals.files import is_file, is_folder

ANSWER_SECONDS = 60.0


def require_shared(ray: Any, source: Path, builder: Builder) -> None:
    """Let a task on each node look for the source, and for the lock or lease that the builder holds where it writes.

    A single node is this one or sees what its driver does. Nodes that join later are asked by :meth:`Builder.check`, which each
    task calls.

    Raises:
        UsageError: a host has another folder of that name, or none, or does not reach a URL.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On every node, whether or not it has CPUs to give: the head may get some later.
    look = ray.remote(num_cpus=0, max_retries=0)(_unseen)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(source, builder): node
        for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    unseen = []
    for reference in ready:
        try:
            unseen.append(ray.get(reference))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            continue  # a node that has just gone; its tasks go elsewhere
    for reference in late:
        ray.cancel(reference)
    if said := sorted({line for line in unseen if line}):
        more = f" (and {len(said) - 1} more hosts)" if len(said) > 1 else ""
        raise UsageError(
            f"{said[0]}{more}; the {len(nodes)} nodes of the cluster must all see source and output: give URLs (s3://...), or "
            "folders on a file system that they share"
        )


def _unseen(source: Path, builder: Builder) -> str:
    """What this host does not see; empty where it sees both."""
    host = socket.gethostname()
    try:
        if not is_folder(source) and not is_file(source):
            return f"{source}: is not there on host {host}"
        builder.check()
    except StorageError:
        return f"{builder.out}: on host {host} this is not the folder that the build writes into"
    except (OSError, SleepFMError) as error:
        return f"{error} (on host {host})"
    return ""
