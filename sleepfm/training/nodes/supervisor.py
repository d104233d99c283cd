"""One node's part of a job on several: starts its processes, and starts them again on what is left when something is lost.

There is one supervisor on every node. After an attempt in which a process or a node was lost, each says that it is ready; the
first of those that answer plans who takes part next, and the others read its plan. Nodes that it leaves out are spares, and
wait for the next one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from sleepfm.config import digest
from sleepfm.console import say
from sleepfm.errors import LostRankError
from sleepfm.training.nodes.attempt import run_processes
from sleepfm.training.nodes.membership import Demand, decide, plan_for
from sleepfm.training.nodes.peers import Peers, Plan
from sleepfm.training.nodes.watch import Watch
from sleepfm.training.ranks.lost_output import outlive_lost_output
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS, listened

_LOOK_SECONDS = 1.0
# How long the first start waits for nodes that are still being made ready, and a restart for one that does not answer.
_FIRST_SECONDS = 600.0
_AGAIN_SECONDS = 5.0
# Between two lines about the nodes that are waited for, and how many a line names.
_NEWS_SECONDS = 15.0
_NAMED = 8
# Between two looks at the other nodes for those that could be taken in.
_PEERS_SECONDS = 5.0
# How long a supervisor that is done tells the others so.
_FAREWELL_SECONDS = 30.0


class Supervisor:
    """This node's.

    Args:
        nodes: names or addresses of all nodes, spares among them, and ``node``, this one's place among them.
        port: where rank 0 listens; the supervisors listen at the next one.
        arguments: script, configuration and overrides of the job.
        regroup_s: seconds that a start runs before nodes that came later are taken in, by a save and another start.
    """

    def __init__(
        self, nodes: Sequence[str], node: int, port: int, demand: Demand, arguments: Sequence[str], regroup_s: float
    ) -> None:
        self._nodes, self._node, self._port, self._demand, self._arguments = nodes, node, port, demand, arguments
        self._regroup_s = regroup_s
        self._asked = False
        self._peers = Peers(nodes, node, port + 1, digest([*nodes, *arguments]))
        self._looked = 0.0
        self._met: set[str] = set()
        """Lives of nodes that this one has seen before they ended."""

    def run(self) -> int:
        """Until the job is done, has to stop, or was asked to leave by a signal; its exit status.

        Raises:
            LostRankError: see :func:`sleepfm.training.nodes.membership.decide`.
        """
        for number in listened():
            signal.signal(number, self._ask)
        outlive_lost_output()
        status = LostRankError.exit_status
        try:
            status = self._run()
        finally:
            self._end(status)
        return status

    def _run(self) -> int:
        while True:
            plan = self._plan()
            if isinstance(plan, int):
                return plan
            status = self._attempt(plan)
            if status == PREEMPTED_STATUS and not self._asked and self._regroups(plan):
                continue
            if status != LostRankError.exit_status or self._asked:
                return status
            self._say(f"a process or a node was lost (start {plan.number}); restarting on the nodes that are left")

    def _plan(self) -> Plan | int:
        """The next plan that this node is part of, or the status with which the job ended elsewhere."""
        own = self._peers.state
        last = own.plan.number if own.plan else 0
        self._peers.state = own.model_copy(update={"phase": "ready", "regroup": False})
        began = time.monotonic()
        absence = _Absence(self._nodes)
        while not self._asked:
            states = self._peers.look()
            self._met |= {state.member.life for state in states.values() if state.phase != "ended"}
            # What is left of a job before this one concerns nobody.
            states = {node: state for node, state in states.items() if state.member.life in self._met}
            ended = [state.status for state in states.values() if state.phase == "ended"]
            if ended:
                return max(ended)
            waited = time.monotonic() - began
            plan = plan_for(own.member, states, last)
            # Nodes that start at the same time do not see one another at once.
            settled = len(states) == len(self._nodes) or waited > _AGAIN_SECONDS
            # Only a start of the whole job waits for all.
            patience = _AGAIN_SECONDS if any(state.plan for state in states.values()) else _FIRST_SECONDS
            if plan is None and (news := absence.news(self._peers.silent, waited, patience)):
                self._say(news)
            if plan is None and min(states) == self._node and settled:
                plan = decide(states, self._demand, waited, patience)
            if plan is not None and own.member in plan.members:
                self._peers.state = own.model_copy(update={"phase": "running", "plan": plan, "regroup": False})
                return plan
            time.sleep(_LOOK_SECONDS)
        return PREEMPTED_STATUS

    def _attempt(self, plan: Plan) -> int:
        hosts = [self._nodes[member.node] for member in plan.members]
        if plan.number > 1:
            self._say(f"start {plan.number} on {len(hosts)} nodes: {' '.join(hosts)}, from step {plan.step}")
        watch = Watch(self._peers, plan)

        def asked() -> bool:
            if watch.age > self._regroup_s and plan.members[0].node == self._node:
                self._regroup_if_worth(plan)
            return self._asked or self._peers.state.regroup

        place = plan.members.index(self._peers.state.member)
        return run_processes(self._arguments, hosts, place, self._demand.processes, self._port, asked, watch.lost)

    def _regroup_if_worth(self, plan: Plan) -> None:
        """On the first node: when more nodes are ready than train, and the job can use them, all save and start again."""
        size = len(plan.members)
        if size == self._demand.wanted or self._peers.state.regroup or time.monotonic() - self._looked < _PEERS_SECONDS:
            return
        self._looked = time.monotonic()
        waiting = [state for state in self._peers.look().values() if state.phase == "ready"]
        if self._demand.usable(size + len(waiting)) > size:
            self._say(f"{len(waiting)} more nodes are ready; saving and restarting with them")
            self._peers.state = self._peers.state.model_copy(update={"regroup": True})

    def _regroups(self, plan: Plan) -> bool:
        """Whether the processes were asked to leave by the first node, in order to go on with more."""
        first = self._peers.look().get(plan.members[0].node)
        return first is not None and (first.regroup or (first.phase == "ready" and first.plan == plan))

    def _end(self, status: int) -> None:
        """Tell the others before this node answers no longer, which would look like a loss."""
        self._peers.state = self._peers.state.model_copy(update={"phase": "ended", "status": status})
        until = time.monotonic() + _FAREWELL_SECONDS
        while time.monotonic() < until:
            states = self._peers.look()
            if all(state.phase == "ended" or node in self._peers.told for node, state in states.items()):
                break
            time.sleep(_LOOK_SECONDS)
        self._peers.close()

    def _say(self, text: str) -> None:
        say(f"node {self._node} ({self._nodes[self._node]}): {text}")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


class _Absence:
    """Says which nodes are waited for and why they do not answer: at once, then when that changes, at most every 15 s."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = nodes
        self._known: dict[int, str] = {}
        self._told = -_NEWS_SECONDS

    def news(self, silent: Mapping[int, str], waited: float, patience: float) -> str:
        """What is to be said after ``waited`` seconds of at most ``patience``; '' for nothing."""
        if silent == self._known or waited - self._told < _NEWS_SECONDS:
            return ""
        self._known, self._told = dict(silent), waited
        if not silent:
            return "all nodes answer"
        shown = [f"node {node} ({self._nodes[node]}): {why}" for node, why in sorted(silent.items())]
        more = f"; and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        return f"after {waited:.0f} s of at most {patience:.0f} s, waiting for {'; '.join(shown[:_NAMED])}{more}"
