"""What the nodes of a job know of one another: each tells its state, read only, over HTTP, and asks the others for theirs."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from pydantic import ValidationError

from sleepfm.config import Config
from sleepfm.console import SaidOnce
from sleepfm.errors import UsageError

_ANSWER_SECONDS = 2.0
# A job that was asked to leave holds its port until it has saved.
_PORT_SECONDS = 60.0
_AT_A_TIME = 64


class Member(Config):
    """A node by its place in NODES; ``life`` is another one when its part of the job was started anew."""

    node: int
    life: str


class Plan(Config):
    """Who takes part in one start of the training processes. The first member's node holds rank 0."""

    number: int
    members: tuple[Member, ...]
    restarts: int
    """Since the last new checkpoint."""
    step: int
    """Of the newest checkpoint when this was planned."""


class State(Config):
    """What a node tells the others."""

    job: str
    """Digest of the command and of NODES."""
    member: Member
    phase: Literal["ready", "running", "ended"] = "ready"
    plan: Plan | None = None
    """The last one that this node took part in, or made."""
    regroup: bool = False
    """Whether the processes of that plan were asked to save because more nodes are ready than it has."""
    status: int = 0
    """With which it ended for good."""


class Peers:
    """Tells this node's state until closed, and asks for the others'.

    Args:
        nodes: names or addresses of all nodes.
        node: this one's place among them.
        port: the TCP port on which every node answers.

    Raises:
        UsageError: this node cannot listen there.
    """

    def __init__(self, nodes: Sequence[str], node: int, port: int, job: str) -> None:
        self._nodes, self._port = nodes, port
        self.state = State(job=job, member=Member(node=node, life=uuid.uuid4().hex[:12]))
        self.told: set[int] = set()
        """Nodes that have read how this one ended."""
        self.silent: dict[int, str] = {}
        """Nodes that did not answer as ones of this job when last looked at, and why."""
        peers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                state = peers.state
                answer = state.model_dump_json().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                asker = self.path.strip("/")
                if state.phase == "ended" and asker.isdigit():
                    peers.told.add(int(asker))

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the nodes ask every second."""

        until, waits = time.monotonic() + _PORT_SECONDS, SaidOnce()
        while True:
            try:
                self._server = ThreadingHTTPServer((_own_address(nodes[node]), port), Handler)
                break
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                    waits.say(
                        f"node {node} ({nodes[node]}): cannot listen at port {port} ({error.strerror}); waiting up to "
                        f"{_PORT_SECONDS:.0f} s until it is free"
                    )
                    time.sleep(0.5)
                    continue
                raise UsageError(
                    f"cannot listen at {nodes[node]}:{port} ({error.strerror}); is NODE_RANK={node} this node, and is another "
                    "job running here? Give the jobs values of MASTER_PORT that differ by two or more"
                ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="state", daemon=True).start()

    def look(self, nodes: Iterable[int] | None = None) -> dict[int, State]:
        """The states of this node and of all others of this job, or those of ``nodes``, that answer within two seconds."""
        own = self.state.member.node
        others = [node for node in (range(len(self._nodes)) if nodes is None else nodes) if node != own]
        with ThreadPoolExecutor(min(_AT_A_TIME, max(1, len(others)))) as pool:
            found = dict(zip(others, pool.map(self._ask, others), strict=True))
        self.silent = {node: state for node, state in found.items() if isinstance(state, str)}
        return {own: self.state} | {node: state for node, state in found.items() if isinstance(state, State)}

    def close(self) -> None:
        """Answer no longer."""
        self._server.shutdown()
        self._server.server_close()

    def _ask(self, node: int) -> State | str:
        """The state of ``node``, or why it takes no part now: it is not there, or not one of this job."""
        connection = http.client.HTTPConnection(self._nodes[node], self._port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", f"/{self.state.member.node}")
            state = State.model_validate_json(connection.getresponse().read())
        except (socket.gaierror, UnicodeError) as error:
            return f"no host has its name ({getattr(error, 'strerror', None) or error})"
        except OSError as error:
            return f"no answer at port {self._port} ({error.strerror or error})"
        except (http.client.HTTPException, ValidationError):
            return f"something else answers at port {self._port}"
        finally:
            connection.close()
        if state.job != self.state.job or state.member.node != node:
            return f"another job answers at port {self._port}, with other arguments or NODES"
        return state


def _own_address(name: str) -> str:
    """Where to listen: at an address as it is given. A name may lead a host to its loopback device: then at all addresses."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return ""
