"""``python -m sleepfm.training.nodes [--module] SCRIPT CONFIG [key=value …]``: what ``launch/node.sh`` runs on every node.

Environment: NODES, NODE_RANK, PROCESSES, MASTER_PORT, SPARES, MIN_NODES, MAX_RESTARTS, REGROUP_SECONDS,
STATUS_FILE; see ``launch/node.sh``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # Until the supervisor listens, there is nothing to end but this process; the other imports take seconds.
    leave_at_once()

from sleepfm.console import exit_with
from sleepfm.errors import LostRankError, UsageError
from sleepfm.files import write_atomic
from sleepfm.training.nodes.membership import Demand, train_section
from sleepfm.training.nodes.supervisor import Supervisor


def main(arguments: list[str]) -> int:
    """Run this node's part of the job; ends with the job's status."""
    nodes = os.environ.get("NODES", "").split()
    if not nodes or not arguments:
        raise UsageError("usage: NODES='node-a node-b' NODE_RANK=0 PROCESSES=8 launch/node.sh SCRIPT CONFIG [key=value …]")
    if len(set(nodes)) < len(nodes):
        raise UsageError(f"NODES={os.environ['NODES']!r}: a node is named twice")
    node = _number("NODE_RANK", None, 0, len(nodes) - 1)
    spares = _number("SPARES", 0, 0, len(nodes) - 1)
    wanted = len(nodes) - spares
    demand = Demand(
        wanted=wanted,
        least=_number("MIN_NODES", 1, 1, wanted),
        processes=_number("PROCESSES", None, 1, 1024),
        max_restarts=_number("MAX_RESTARTS", 3, 0, 1000),
        train=train_section(arguments),
    )
    regroup_s = _number("REGROUP_SECONDS", 300, 1, 1_000_000)
    supervisor = Supervisor(nodes, node, _number("MASTER_PORT", 29500, 1, 65534), demand, arguments, regroup_s)
    status = LostRankError.exit_status
    try:
        status = supervisor.run()
    finally:
        # Every node writes the same.
        if path := os.environ.get("STATUS_FILE"):
            write_atomic(Path(path), f"{status}\n")
    return status


def _number(name: str, default: int | None, least: int, most: int) -> int:
    text = os.environ.get(name) or ("" if default is None else str(default))
    if not text.isdigit() or not least <= int(text) <= most:
        raise UsageError(f"{name}={text!r}: expected a number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
