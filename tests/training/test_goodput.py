"""Where a run's wall time went: by a clock of the test's own, and in a job that is killed and goes on; a trace of steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from mlflow.tracking import MlflowClient

from sleepfm.config import validate
from sleepfm.errors import ConfigError
from sleepfm.files import read_json
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import TrainConfig
from sleepfm.training.tracking.goodput import CAUSES, Goodput, StepTimes, cause_of, compare_ranks

ALONE = World(0, 1, 0, 1)
PHASES = ("waiting for data of step", "in the forward pass of step", "in the backward pass of step", "in the update of step")


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def step(goodput: Goodput, hands: Hands, number: int, data: float, rest: float) -> None:
    goodput.begins(number)
    goodput.at(f"{PHASES[0]} {number}")
    hands.now += data
    for place in PHASES[1:]:
        goodput.at(f"{place} {number}")
        hands.now += rest / 4
    goodput.at(f"adding up the figures of step {number}")
    hands.now += rest / 4


def phase(goodput: Goodput, hands: Hands, place: str, seconds: float) -> None:
    goodput.at(place, patient=True)
    hands.now += seconds


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Hands, RunFolder]]:
    yield Hands(), RunFolder(tmp_path)


def test_every_second_has_a_cause(run: tuple[Hands, RunFolder]) -> None:
    hands, folder = run
    goodput = Goodput(ALONE, folder, 0, began=990.0, clock=hands)
    phase(goodput, hands, "choosing the checkpoint", 5)
    phase(goodput, hands, "loading the checkpoint", 5)
    assert goodput.share() == 0
    step(goodput, hands, 1, data=1, rest=8)
    step(goodput, hands, 2, data=3, rest=8)
    phase(goodput, hands, "validating step 2", 10)
    figures = goodput.figures()
    assert figures["goodput/step"] == pytest.approx(16 / 50) == goodput.share()
    assert sum(figures[f"goodput/{cause}"] for cause in CAUSES) == pytest.approx(1)
    phase(goodput, hands, "saving step 2", 2)
    phase(goodput, hands, "waiting for the last checkpoint to be on the disk", 3)
    phase(goodput, hands, "exporting", 7)
    goodput.ended("FINISHED")
    goodput.close()
    expected = {"step": 16, "data": 4, "start": 20, "validation": 10, "saves": 5, "restarts": 0, "end": 7, "other": 0}
    assert goodput.summary() == {"share": round(16 / 62, 4), "seconds": expected}
    assert read_json(folder.goodput)["seconds"] == expected
    assert goodput.describe() == "goodput 26% (start 32%, validation 16%, end 11%, saves 8%, data 6%)"
    # Of steps of 9 and 11 s.
    assert figures["ranks/step_seconds"] == 10 and figures["ranks/step_seconds_std"] == pytest.approx(1)
    assert figures["ranks/step_seconds_longest"] == 11 and figures["ranks/data_wait_largest"] == pytest.approx(0.2)


@pytest.mark.parametrize(("asked", "away"), [(False, 30), (True, 0)])
def test_what_was_lost_counts_as_restarts(run: tuple[Hands, RunFolder], asked: bool, away: float) -> None:
    hands, folder = run
    goodput = Goodput(ALONE, folder, 0, began=hands.now, clock=hands)
    for number in range(1, 8):
        step(goodput, hands, number, data=0, rest=10)
        if number == 4:
            phase(goodput, hands, "saving step 4", 2)
    if asked:
        # The checkpoint of step 7 has not become whole.
        phase(goodput, hands, "saving step 7", 1)
        goodput.ended("KILLED")
        goodput.close()
    else:
        goodput.begins(8)
    lost = 31 if asked else 30
    hands.now += 30
    again = Goodput(ALONE, folder, 4, began=hands.now, clock=hands)
    phase(again, hands, "loading the checkpoint", 15)
    step(again, hands, 5, data=0, rest=10)
    again.close()
    expected = dict.fromkeys(CAUSES, 0.0) | {"step": 50, "saves": 2, "restarts": lost + away + 15}
    assert again.summary()["seconds"] == expected


def test_ranks_are_compared_by_what_they_do_alone() -> None:
    ranks = [StepTimes() for _ in range(3)]
    for rank, (data, own) in zip(ranks, ((0.1, 0.4), (0.0, 0.7), (0.3, 0.6)), strict=True):
        for seconds in (0.9, 1.1):
            rank.add(seconds, data, own)
    figures = compare_ranks(ranks)
    assert figures["ranks/slowest"] == 1 and figures["ranks/slowest_own_seconds"] == pytest.approx(0.7)
    assert figures["ranks/step_seconds"] == pytest.approx(1) and figures["ranks/step_seconds_std"] == pytest.approx(0.1)
    assert figures["ranks/data_wait_largest"] == pytest.approx(0.3) and figures["ranks/step_seconds_longest"] == 1.1
    assert compare_ranks([StepTimes()]) == {}


def test_places_that_nobody_knows_are_neither_steps_nor_hidden() -> None:
    assert cause_of("doing what no one has thought of") == "other"
    assert {cause_of(f"{place} 3") for place in PHASES} == {"step", "data"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, str]:
    """A job of two processes that is killed in step 7 of 12 and goes on from step 4; the seconds of all, and what it said."""
    folder = tmp_path_factory.mktemp("killed")
    more = ("toy.kill_at=[50]", f"toy.kill_flag={folder / 'flag'}", "toy.seconds=0.02")
    began = time.time()
    first = launch(folder, 2, *more, "train.profile=2-3", node=True)
    assert first.returncode != 0 and (folder / "run" / "checkpoints").exists(), first.stderr
    # Another profile is no other run.
    second = launch(folder, 2, *more, "train.profile=11", node=True)
    assert second.returncode == 0, second.stderr
    return folder, time.time() - began, first.stdout + second.stdout


@pytest.mark.slow
def test_a_job_that_was_killed_knows_what_its_time_went_into(killed: tuple[Path, float, str]) -> None:
    folder, wall, said = killed
    record, result = read_json(folder / "run/goodput.json"), read_json(folder / "run/result.json")
    seconds: dict[str, float] = record["seconds"]
    # All but what the launcher takes, and between a kill and what was last written.
    assert 0.5 * wall < sum(seconds.values()) <= wall
    assert all(seconds[cause] > 0 for cause in CAUSES if cause != "other"), seconds
    assert seconds["other"] == 0
    assert seconds["restarts"] > seconds["saves"]
    assert set(result["goodput"]["seconds"]) == set(CAUSES)
    assert 0 < result["goodput"]["share"] < 1
    assert "goodput " in said.splitlines()[-1] and "restarts" in said.splitlines()[-1]
    run = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db").get_run(result["run_id"])
    figures = {key for key in run.data.metrics if key.startswith(("goodput/", "ranks/"))}
    assert {f"goodput/{cause}" for cause in CAUSES} < figures and "ranks/slowest" in figures
    assert sum(run.data.metrics[f"goodput/{cause}"] for cause in CAUSES) == pytest.approx(1)


@pytest.mark.slow
def test_a_profile_has_the_steps_that_were_asked_for(killed: tuple[Path, float, str]) -> None:
    folder, _, said = killed
    assert "train.profile: steps 2 to 3 are in run/profile.json" in said
    events: list[dict[str, Any]] = json.loads((folder / "run/profile.json").read_text())["traceEvents"]
    steps = [event for event in events if event.get("name", "").startswith("ProfilerStep#") and event.get("ph") == "X"]
    # The second profile has taken the place of the first.
    assert {event["name"] for event in steps} == {"ProfilerStep#11"}
    (step,) = steps
    inside = {event["name"] for event in events if step["ts"] <= event.get("ts", 0) <= step["ts"] + step["dur"]}
    assert {"aten::addmm", "aten::native_batch_norm"} < inside
    assert "profile.json" not in [path.name for path in folder.iterdir()]


def test_steps_to_profile_are_a_number_or_two_in_order() -> None:
    def steps(text: str) -> range:
        return validate(TrainConfig, {"output": "run", "lr": 1, "steps": 1, "profile": text}, "test").profiled

    assert (steps(""), steps("7"), steps("20-25")) == (range(0), range(7, 8), range(20, 26))
    for bad in ("25-20", "0-3", "steps 3", "3-"):
        with pytest.raises(ConfigError, match="profile"):
            steps(bad)
