"""What the nodes of a cluster offer now; nodes come and go while a build runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sleepfm.errors import ConfigError, ShardError

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0


class Capacity:
    """CPUs of the cluster, and the memory of its largest node that has one.

    Args:
        least: bytes without which no task can run.
        asked: the key's value that ``least`` follows from, for messages.
        patience: seconds that there may be no node for tasks.
        say: takes lines for the user.
    """

    def __init__(self, ray: Any, least: int, asked: int | str, patience: float, say: Callable[[str], object]) -> None:
        self._ray = ray
        self._least, self._asked = least, asked
        self._patience, self._say = patience, say
        self.cpus = 0
        self.memory = 0
        self._looked = float("-inf")
        self._alone_since: float | None = None
        self._said = float("-inf")
        self._ever = False

    def look(self) -> None:
        """Ask the cluster again, at most once a second.

        Raises:
            ConfigError: there are nodes with CPUs, and none of them can hold a task.
            ShardError: there has been no node for tasks for too long.
        """
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.cpus = int(sum(node.get("CPU", 0) for node in nodes))
        self.memory = int(max((node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1), default=0))
        if self.memory >= self._least:
            self._ever, self._alone_since = True, None
            return
        if self.memory and not self._ever:
            raise ConfigError(
                f"ray.task_memory_mb={self._asked}: no node of the Ray cluster offers a CPU and {self._least / 2**20:.0f} MB of "
                f"memory (largest: {self.memory / 2**20:.0f} MB); lower it"
            )
        self._wait(now, len(nodes))

    def _wait(self, now: float, nodes: int) -> None:
        if self._alone_since is None:
            self._alone_since = self._said = now
            # A cluster that has just come up has its nodes in a moment.
            self._said -= _SECONDS_BETWEEN_LINES - 2 * _SECONDS_BETWEEN_LOOKS
        waited = now - self._alone_since
        if waited > self._patience:
            raise ShardError(
                f"no node of the Ray cluster has offered a CPU and {self._least / 2**20:.0f} MB of memory for {waited:.0f} s "
                "(ray.wait_for_nodes_s); start nodes (ray start --address=...), then run the same command again: what is "
                "finished is kept"
            )
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            self._say(
                f"waiting for nodes: none of {nodes} offers a CPU and {self._least / 2**20:.0f} MB of memory; "
                f"{waited:.0f} s of at most {self._patience:.0f} s"
            )
