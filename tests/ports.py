"""TCP ports for servers of tests."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that systems give to outgoing connections (32768 and up, ip(7)): one of those may be taken by any connection
# of another test before the server listens.
_PORTS = range(20_000, 32_768)


def free_ports(count: int) -> list[int]:
    """That many different ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        # Not the generator that tests seed: two processes would draw the same.
        for port in random.SystemRandom().sample(_PORTS, 1000):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"fewer than {count} ports are free")


def free_port() -> int:
    """A port that nothing listens on."""
    return free_ports(1)[0]
