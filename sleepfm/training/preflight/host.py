"""Faults of hosts: network interfaces, ports, what reaches what, clocks, the data set that each sees."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from sleepfm.training.preflight.faults import Fault
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.joining import wait_for_port

# Logs, traces and figures of several hosts are read side by side, by their times; NTP keeps hosts within some 0.1 s.
CLOCK_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interfaces(environment: Mapping[str, str], one_host: bool = False) -> list[Fault]:
    """The network interfaces that the environment names are there and, where the job has several hosts, up.

    A host that is left alone when its cable is pulled goes on: what it says to itself needs no cable.
    """
    found = []
    there = {name for name, state in psutil.net_if_stats().items() if state.isup or one_host}
    for variable in _INTERFACES:
        text = environment.get(variable, "")
        # NCCL's own syntax: `^` leaves out what follows, `=` means the whole name, else a prefix.
        if text.startswith("^"):
            continue
        exact = text.startswith("=") or variable.startswith("GLOO")
        for name in filter(None, text.lstrip("=").split(",")):
            if name in there or (not exact and any(other.startswith(name) for other in there)):
                continue
            have, up = ", ".join(sorted(there)), "" if one_host else " that is up"
            found.append(Fault(f"environment variable {variable}={text}: no interface {name}{up}; there are {have}", False))
    return found


def port(world: World, environment: Mapping[str, str], patience_seconds: float) -> list[Fault]:
    """Nothing else listens where rank 0 is going to, or nothing does any more after ``patience_seconds``."""
    number = environment.get("MASTER_PORT", "")
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world.size == 1 or not world.is_main or agent or not number.isdigit():
        return []
    reason = wait_for_port(int(number), patience_seconds)
    if not reason:
        return []
    waited = f" for {patience_seconds:.0f} s" if patience_seconds else ""
    return [Fault(f"port {number}, where rank 0 listens: {reason}{waited}; give the launcher another --master_port", False)]


def unreachable(hosts: Mapping[str, tuple[str, int]]) -> list[Fault]:
    """The hosts (address and a port that is listened at, by name) that this one cannot connect to."""

    def attempt(name: str) -> Fault | None:
        address, number = hosts[name]
        try:
            socket.create_connection((address, number), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error)
            return Fault(
                f"cannot reach {name} at {address}, port {number} ({reason}); ranks need every port above 1024 between hosts: "
                f"open them, or set the interface to use in {' and '.join(_INTERFACES)}",
                False,
            )
        return None

    if not hosts:
        return []
    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        return [fault for fault in pool.map(attempt, sorted(hosts)) if fault is not None]


def listener() -> socket.socket:
    """A socket that listens on a free port of every address of this host."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def address() -> str:
    """This host's address on the interface that its ranks use: the stated one, or the one that leads to rank 0."""
    addresses = psutil.net_if_addrs()
    for variable in _INTERFACES:
        name = os.environ.get(variable, "").lstrip("=").split(",")[0]
        for entry in addresses.get(name, ()):
            if entry.family == socket.AF_INET:
                return str(entry.address)
    family, kind, _, _, target = socket.getaddrinfo(os.environ["MASTER_ADDR"], 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        # Sends nothing; the system chooses the interface.
        probe.connect(target)
        return str(probe.getsockname()[0])


def clocks(seconds: Sequence[float], hosts: Sequence[str]) -> list[Fault]:
    """The clocks of all ranks, read at nearly the same time, agree within :data:`CLOCK_SECONDS`."""
    if max(seconds) - min(seconds) <= CLOCK_SECONDS:
        return []
    middle = sorted(seconds)[(len(seconds) - 1) // 2]
    by_host = {host: value - middle for host, value in zip(hosts, seconds, strict=True)}
    told = ", ".join(f"{host} {offset:+.1f} s" for host, offset in sorted(by_host.items()) if abs(offset) > CLOCK_SECONDS / 2)
    spread = max(seconds) - min(seconds)
    return [
        Fault(f"clocks of the hosts differ by {spread:.1f} s, more than {CLOCK_SECONDS:g}: {told}; synchronise them (NTP)", False)
    ]


def datasets(digests: Sequence[str], hosts: Sequence[str], path: str) -> list[Fault]:
    """Every rank sees the same data set; '' where one sees none, which it says itself."""
    seen = [digest for digest in digests if digest]
    if len(set(seen)) < 2:
        return []
    common = Counter(seen).most_common(1)[0][0]
    others: dict[str, str] = {host: digest for host, digest in zip(hosts, digests, strict=True) if digest not in ("", common)}
    told = ", ".join(f"{host} sees {digest[:12]}" for host, digest in sorted(others.items()))
    where = f"data.path={path}" if path else "data set"
    return [Fault(f"{where}: {told}, the others {common[:12]}; give every host the same data set", False)]
