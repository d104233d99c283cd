"""Which nodes train next. No clocks, no network: what is known in, a decision out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sleepfm.config import apply_overrides, read_yaml, validate
from sleepfm.errors import ConfigError, LostRankError
from sleepfm.paths import find_config
from sleepfm.training.feed import Shares
from sleepfm.training.nodes.peers import Member, Plan, State
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS
from sleepfm.training.run_config import TrainConfig
from sleepfm.training.state import checkpoint


@dataclass(frozen=True)
class Demand:
    """What a job needs of its nodes.

    Attributes:
        wanted: nodes that train when all is well; further ones of NODES are spares.
        least: fewest nodes that may train.
        processes: of each node.
        max_restarts: starts without a new checkpoint between them, after which the job ends.
        train: the job's section ``train``, or None where it cannot be read; the job itself then says why.
    """

    wanted: int
    least: int
    processes: int
    max_restarts: int
    train: TrainConfig | None

    def usable(self, ready: int) -> int:
        """The most nodes, up to ``ready``, among whose processes the global batch can be divided; 0 if none can."""
        return next((nodes for nodes in range(min(ready, self.wanted), self.least - 1, -1) if self._divides(nodes)), 0)

    def saved_step(self) -> int:
        """Step of the newest checkpoint, 0 if there is none or it cannot be read: the job says why."""
        if self.train is None:
            return 0
        try:
            saved = checkpoint.steps(Path(self.train.output) / "checkpoints")
        except OSError:
            return 0
        return saved[0] if saved else 0

    def _divides(self, nodes: int) -> bool:
        if self.train is None:
            return True
        try:
            Shares.of(self.train, World(0, nodes * self.processes, 0, self.processes))
        except ConfigError:
            return False
        return True


def train_section(arguments: Sequence[str]) -> TrainConfig | None:
    """The section ``train`` of the configuration in a job's command line, ``[--module] SCRIPT CONFIG [key=value …]``."""
    plain = [word for word in arguments if not word.startswith("-")]
    overrides = [word for word in plain if "=" in word]
    names = [word for word in plain if "=" not in word]
    try:
        values = apply_overrides(read_yaml(find_config(names[1])), overrides)
        return validate(TrainConfig, values["train"], names[1])
    except (ConfigError, IndexError, KeyError):
        return None


def absent(plan: Plan, states: Mapping[int, State], nodes: Iterable[int]) -> list[int]:
    """Those of ``nodes`` that no longer take part in ``plan``: they do not answer, were started anew, or have given it up. Those
    that are done with it, or left it after a save, are as far as the others will be.
    """
    members = {member.node: member for member in plan.members}

    def gone(node: int) -> bool:
        state = states.get(node)
        if state is None or state.member != members[node]:
            return True
        begun = state.plan is not None and state.plan.number >= plan.number
        refused = state.phase == "ended" and state.status not in (0, PREEMPTED_STATUS)
        return refused or (begun and (state.plan != plan or state.phase == "ready"))

    return [node for node in nodes if gone(node)]


def plan_for(member: Member, states: Mapping[int, State], last: int) -> Plan | None:
    """The newest plan after number ``last`` that ``member`` is part of.

    Of two with one number, which nodes that did not see each other have made, that of the first: those who follow the other will
    miss this member, and start again.
    """
    plans = [state.plan for _, state in sorted(states.items()) if state.plan is not None and state.phase == "running"]
    own = [plan for plan in plans if plan.number > last and member in plan.members]
    return max(own, key=lambda plan: plan.number, default=None)


def decide(states: Mapping[int, State], demand: Demand, waited: float, patience: float) -> Plan | None:
    """The next plan, by the first of the nodes that answer; None where it is to wait.

    While a node that answers still trains, nothing is planned: its processes end by themselves when others are lost. Nodes that
    do not answer are waited for until ``waited`` reaches ``patience``, unless enough of them are there.

    Raises:
        LostRankError: too few nodes are left, or there were too many restarts.
    """
    if any(state.phase == "running" for state in states.values()):
        return None
    ready = [state.member for _, state in sorted(states.items()) if state.phase == "ready"]
    if len(ready) < demand.wanted and waited < patience:
        return None
    nodes = demand.usable(len(ready))
    if not nodes:
        raise LostRankError(
            f"{len(ready)} of {demand.wanted} nodes are left: too few (MIN_NODES={demand.least}), or train.global_batch cannot "
            "be divided among their processes; the same command continues when more nodes are available"
        )
    step = demand.saved_step()
    before = max((state.plan for state in states.values() if state.plan is not None), key=lambda plan: plan.number, default=None)
    if before is None:
        return Plan(number=1, members=tuple(ready[:nodes]), restarts=0, step=step)
    restarts = before.restarts + 1 if step <= before.step else 1
    if restarts > demand.max_restarts:
        raise LostRankError(
            f"{before.restarts} restarts, and no checkpoint newer than step {step} (MAX_RESTARTS={demand.max_restarts}); see "
            "above for what was lost. The same command continues from there"
        )
    return Plan(number=before.number + 1, members=tuple(ready[:nodes]), restarts=restarts, step=step)
