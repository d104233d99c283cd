"""Whether the other nodes of a start still take part in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from sleepfm.training.nodes.membership import absent
from sleepfm.training.nodes.peers import Plan, State

# Between two looks at the others.
_LOOK_SECONDS = 5.0
# How long one may be absent that does not answer.
_SILENT_SECONDS = 30.0
# The same for one that says that it has left: this node's processes, unless they are stopped, see that by themselves within it.
_LEFT_SECONDS = 10.0


class _Answers(Protocol):
    @property
    def state(self) -> State: ...

    def look(self, nodes: Iterable[int]) -> Mapping[int, State]: ...


class Watch:
    """Of the nodes of ``plan``, the first looks at all others, and each of these at the first.

    The processes see by themselves that others are lost, once they have met; this is for those that never will, or are stopped.
    """

    def __init__(self, peers: _Answers, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._peers, self._plan, self._clock = peers, plan, clock
        self._began = self._looked = clock()
        self._since: dict[int, float] = {}
        first, *others = [member.node for member in plan.members]
        self._nodes = others if first == peers.state.member.node else [first]

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def lost(self) -> bool:
        """Whether one of them has been absent for too long; asks at most every few seconds."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        states = self._peers.look(self._nodes)
        self._since = {node: self._since.get(node, now) for node in absent(self._plan, states, self._nodes)}
        limits = {node: _LEFT_SECONDS if node in states else _SILENT_SECONDS for node in self._since}
        return any(now - since > limits[node] for node, since in self._since.items())
