"""Which nodes train next, and how they hear of one another."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
from ports import free_port

from sleepfm.errors import LostRankError, UsageError
from sleepfm.training.nodes.membership import Demand, absent, decide, plan_for, train_section
from sleepfm.training.nodes.peers import Member, Peers, Plan, State
from sleepfm.training.nodes.supervisor import _Absence
from sleepfm.training.nodes.watch import Watch
from sleepfm.training.run_config import TrainConfig


def demand(tmp_path: Path, wanted: int = 4, least: int = 1, batch: int = 16, restarts: int = 2) -> Demand:
    train = TrainConfig(output=str(tmp_path / "run"), steps=10, lr=0.1, global_batch=batch, accumulation=2)
    return Demand(wanted, least, 2, restarts, train)


def states(*phases: str, plan: Plan | None = None) -> dict[int, State]:
    """States of nodes that answer, by a letter: ready, busy training, ended; a dash does not answer."""
    names = {"r": "ready", "b": "running", "e": "ended"}
    return {
        node: State.model_validate({"job": "j", "member": member(node), "phase": names[phase], "plan": plan})
        for node, phase in enumerate(phases)
        if phase != "-"
    }


def member(node: int) -> Member:
    return Member(node=node, life=f"life{node}")


def nodes(plan: Plan | None) -> list[int]:
    assert plan is not None
    return [found.node for found in plan.members]


def plan_of(number: int, *members: int, restarts: int = 0, step: int = 0) -> Plan:
    return Plan(number=number, members=tuple(map(member, members)), restarts=restarts, step=step)


def test_a_job_starts_on_all_nodes_and_leaves_spares_out(tmp_path: Path) -> None:
    first = decide(states(*"rrrrr"), demand(tmp_path), 0, 600)
    assert nodes(first) == [0, 1, 2, 3]
    assert first is not None and (first.number, first.restarts) == (1, 0)
    assert decide(states(*"rrr-"), demand(tmp_path), 599, 600) is None


def test_what_is_left_goes_on_in_a_number_that_divides_the_batch(tmp_path: Path) -> None:
    before = plan_of(1, 0, 1, 2, 3)
    # A batch of 8 a micro-step: three nodes of two processes cannot divide it.
    assert nodes(decide(states(*"r-rr", plan=before), demand(tmp_path), 15, 15)) == [0, 2]
    assert nodes(decide(states(*"r-rr", plan=before), demand(tmp_path, batch=48), 15, 15)) == [0, 2, 3]
    # The first is lost.
    assert nodes(decide(states(*"-rrrr", plan=before), demand(tmp_path), 0, 15)) == [1, 2, 3, 4]
    with pytest.raises(LostRankError, match="too few"):
        decide(states(*"r---", plan=before), demand(tmp_path, least=2), 15, 15)


def test_nothing_is_planned_while_a_node_trains(tmp_path: Path) -> None:
    # Node 0 has come back to a job that goes on without it.
    assert decide(states(*"rbb-", plan=plan_of(2, 1, 2)), demand(tmp_path), 10_000, 15) is None


def test_restarts_are_counted_from_the_last_new_checkpoint(tmp_path: Path) -> None:
    for restarts, expected in ((0, 1), (1, 2)):
        again = decide(states(*"rrrr", plan=plan_of(3, 0, 1, 2, 3, restarts=restarts)), demand(tmp_path), 0, 15)
        assert again is not None and (again.number, again.restarts) == (4, expected)
    with pytest.raises(LostRankError, match=r"2 restarts, and no checkpoint newer than step 0 \(MAX_RESTARTS=2\)"):
        decide(states(*"rrrr", plan=plan_of(3, 0, 1, 2, 3, restarts=2)), demand(tmp_path), 0, 15)
    folder = tmp_path / "run" / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"step": 4, "processes": 2, "zero": 1, "files": {}}))
    (folder.parent / "latest").write_text("step-00000004\n")
    again = decide(states(*"rrrr", plan=plan_of(3, 0, 1, 2, 3, restarts=2)), demand(tmp_path), 0, 15)
    assert again is not None and (again.restarts, again.step) == (1, 4)


def test_a_node_is_absent_that_does_not_answer_was_started_anew_or_has_given_up() -> None:
    plan, others = plan_of(2, 0, 1, 2, 3), [1, 2, 3]
    assert absent(plan, states(*"bbbb", plan=plan), others) == []
    assert absent(plan, states(*"b-bb", plan=plan), others) == [1]
    assert absent(plan, states(*"brbb", plan=plan), others) == [1]
    # Has not read the plan yet.
    assert absent(plan, states(*"brrr", plan=plan_of(1, 0, 1, 2, 3)), others) == []
    anew = states(*"bbbb", plan=plan)
    anew[2] = anew[2].model_copy(update={"member": Member(node=2, life="another")})
    assert absent(plan, anew, others) == [2]
    # Follows another plan of the same number.
    anew = states(*"bbbb", plan=plan)
    anew[2] = anew[2].model_copy(update={"plan": plan_of(2, 2, 3)})
    assert absent(plan, anew, others) == [2]
    for status, expected in ((0, []), (75, []), (1, [3]), (69, [3])):
        anew = states(*"bbbe", plan=plan)
        anew[3] = anew[3].model_copy(update={"status": status})
        assert absent(plan, anew, others) == expected


class Answers:
    """Nodes whose states the test sets, and a clock that it turns."""

    def __init__(self, own: int, given: dict[int, State]) -> None:
        self.state, self.given, self.now = given[own], given, 0.0

    def look(self, nodes: Iterable[int]) -> dict[int, State]:
        return {node: self.given[node] for node in nodes if node in self.given}

    def seconds_until_lost(self, watch: Watch) -> float:
        began = self.now
        while not watch.lost():
            self.now += 0.5
            if self.now - began > 600:
                return math.inf
        return self.now - began


@pytest.mark.parametrize("own", [0, 1])
def test_a_node_that_says_it_has_left_is_waited_for_shorter_than_a_silent_one(own: int) -> None:
    plan, other = plan_of(2, 0, 1), 1 - own
    answers = Answers(own, states(*"bb", plan=plan))
    watch = Watch(answers, plan, lambda: answers.now)
    assert answers.seconds_until_lost(watch) == math.inf
    # Its processes are lost, and it is ready for another start; those of this node may be stopped, and never see it.
    there = answers.given.pop(other)
    assert 30 < answers.seconds_until_lost(watch) <= 40
    # A look that it did not answer, and nothing.
    answers.given[other] = there
    assert answers.seconds_until_lost(watch) == math.inf
    answers.given[other] = there.model_copy(update={"phase": "ready"})
    assert 10 < answers.seconds_until_lost(watch) <= 20


def test_a_node_takes_part_in_the_newest_plan_that_names_it() -> None:
    # Nodes 0 and 1 did not see each other, and have planned both; node 3 has ended something before.
    known = states(*"bbre", plan=plan_of(1, 0, 1, 2, 3))
    known[0] = known[0].model_copy(update={"plan": plan_of(2, 0, 2)})
    known[1] = known[1].model_copy(update={"plan": plan_of(2, 1, 2)})
    known[3] = known[3].model_copy(update={"plan": plan_of(3, 2, 3)})
    assert plan_for(member(2), known, 1) == plan_of(2, 0, 2)
    assert plan_for(member(2), known, 2) is None
    assert plan_for(Member(node=2, life="another"), known, 1) is None
    known[1] = known[1].model_copy(update={"plan": plan_of(3, 1, 2)})
    assert plan_for(member(2), known, 1) == plan_of(3, 1, 2)


def test_the_section_train_is_read_as_the_job_reads_it(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train: {output: run, steps: 5, lr: 0.1}\n")
    found = train_section(["--module", "launch.pretrain", str(tmp_path / "job.yaml"), "train.global_batch=24", "--resume=auto"])
    assert found is not None and (found.output, found.global_batch) == ("run", 24)
    # The job itself says what is wrong.
    assert train_section(["x.py", str(tmp_path / "none.yaml")]) is None
    assert train_section(["x.py", str(tmp_path / "job.yaml"), "train.stepz=1"]) is None


def test_nodes_tell_one_another_their_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleepfm.training.nodes.peers._PORT_SECONDS", 0.5)
    names, port = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"], free_port()
    first, second, other = Peers(names, 0, port, "job"), Peers(names, 1, port, "job"), Peers(names, 3, port, "another job")
    try:
        assert sorted(first.look()) == sorted(second.look()) == [0, 1]
        plan = plan_of(7, 0, 1)
        first.state = first.state.model_copy(update={"phase": "ended", "plan": plan, "status": 75})
        found = second.look()[0]
        assert (found.phase, found.plan, found.status, first.told) == ("ended", plan, 75, {1})
        assert found.member.life == first.state.member.life
        with pytest.raises(UsageError, match=r"cannot listen at 127.0.0.1:.*MASTER_PORT"):
            Peers(names, 0, port, "job")
        # Read only.
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=b"{}")
    finally:
        for peers in (first, second, other):
            peers.close()
    began = time.monotonic()
    assert second.look() == {1: second.state}
    assert time.monotonic() - began < 5


def test_nodes_that_are_waited_for_are_named_with_the_reason() -> None:
    names, port = ["127.0.0.1", "127.0.0.2", "no.such.node.invalid", "127.0.0.4"], free_port()
    own, other = Peers(names, 0, port, "job"), Peers(names, 3, port, "another job")
    try:
        own.look()
        assert own.silent[1] == f"no answer at port {port} (Connection refused)"
        assert own.silent[2].startswith("no host has its name (")
        assert own.silent[3] == f"another job answers at port {port}, with other arguments or NODES"
        absence = _Absence(names)
        said = absence.news(own.silent, 0.0, 600.0)
        assert said.startswith(f"after 0 s of at most 600 s, waiting for node 1 (127.0.0.2): no answer at port {port}")
        assert "; node 2 (no.such.node.invalid): no host has its name" in said
        # The same is said once, another thing 15 s later.
        assert absence.news(own.silent, 100.0, 600.0) == ""
        assert absence.news({1: "away"}, 110.0, 600.0).endswith("waiting for node 1 (127.0.0.2): away")
        assert absence.news({}, 120.0, 600.0) == ""
        assert absence.news({}, 126.0, 600.0) == "all nodes answer"
        assert _Absence(names).news({}, 0.0, 600.0) == ""
    finally:
        own.close()
        other.close()


def test_a_port_of_the_nodes_that_is_taken_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sleepfm.training.nodes.peers._PORT_SECONDS", 1.0)
    names, port = ["127.0.0.1"], free_port()
    first = Peers(names, 0, port, "job")
    try:
        with pytest.raises(UsageError, match="cannot listen"):
            Peers(names, 0, port, "job")
    finally:
        first.close()
    said = f"node 0 (127.0.0.1): cannot listen at port {port} (Address already in use); waiting up to 1 s until it is free\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK='2': expected a number from 0 to 1"),
        ({"NODES": "a a"}, "a node is named twice"),
        ({"SPARES": "2"}, "SPARES='2': expected a number from 0 to 1"),
        ({"PROCESSES": "many"}, "PROCESSES='many'"),
    ],
)
def test_wrong_variables_are_named(variables: dict[str, str], said: str) -> None:
    given = os.environ | {"NODES": "127.0.0.1 127.0.0.2", "NODE_RANK": "0", "PROCESSES": "1"} | variables
    command = [sys.executable, "-m", "sleepfm.training.nodes", "x.py", "x.yaml"]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
