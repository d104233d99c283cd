"""Tasks that run out of memory at sound recordings: what is known is said, with what to change, and no recording is accused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import schedule
from shards.build_config import load_build_config
from shards.plan import Entry, ShardPlan
from shards.schedule import News, Schedule, Work
from shards.task import Outcome, Refusal
from sleepfm.errors import ShardError

SHARD = ShardPlan("shard-000000.tar", (Entry("a.edf", 1, "a"), Entry("b.edf", 1, "b")))
ASKED = 200


@pytest.fixture
def ray(connection) -> Iterator[Any]:
    """Connected to the cluster, whose workers know no module of the tests."""
    import ray as connected
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield connected
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def build(ray: Any, task: Callable[..., Outcome], report: Callable[[News], object]) -> None:
    config = load_build_config(None, [f"ray.task_memory_mb={ASKED}", "ray.retries=2"])
    Schedule(ray, Work(Path("in"), Path("out"), config, "build", {}, {}, {}), task, report).run([SHARD])


def out_of_memory(*arguments: Any) -> Outcome:
    """A task that runs out of memory at its second recording."""
    error = MemoryError()
    error.add_note("while converting in/b.edf")
    raise error


def refusing(*arguments: Any) -> Outcome:
    """Builds a shard without what is refused; runs out of memory where nothing is."""
    refused: dict[str, Refusal] = arguments[7]
    return Outcome(SHARD.name, 1, 1.0, 1.0, tuple(refused.values())) if refused else out_of_memory()


def sound(*arguments: Any) -> str:
    return ""


def short_at_the_second(source: Path, entry: Entry, *others: Any) -> str:
    return "memory ran out" if entry.path == "b.edf" else ""


def test_a_shard_of_sound_recordings_accuses_none_of_them(ray, monkeypatch):
    monkeypatch.setattr(schedule, "attempt", sound)
    with pytest.raises(ShardError) as failed:
        build(ray, out_of_memory, lambda news: None)
    said = str(failed.value)
    assert "its task ran out of memory 3 times, although each of its recordings can be converted by itself" in said
    assert f"(memory ran out while converting in/b.edf (its task had asked for {ASKED} MB)); run fewer tasks at once" in said
    assert f"ray.task_memory_mb above {ASKED}" in said and "--num-cpus" in said


def test_a_recording_that_memory_never_sufficed_for_may_be_sound(ray, monkeypatch):
    monkeypatch.setattr(schedule, "attempt", short_at_the_second)
    news: list[News] = []
    build(ray, refusing, news.append)
    (refusal,) = next(each for each in news if isinstance(each, Outcome)).refusals
    assert (refusal.path, refusal.error) == ("b.edf", "FatalRecordingError")
    assert "memory ran out whenever it was converted by itself, which may be no fault of the recording" in refusal.reason
    # It was tried a second time with twice as much.
    tried = "; ".join(f"memory ran out (its task had asked for {asked} MB)" for asked in (ASKED, 2 * ASKED))
    assert f"(2 of 2 attempts: {tried})" in refusal.reason
    assert f"ray.task_memory_mb above {2 * ASKED}" in refusal.reason and "--retry-refused" in refusal.reason


def test_where_a_node_has_no_more_the_advice_is_another_node(ray):
    schedule_of = Schedule(ray, Work(Path("in"), Path("out"), load_build_config(), "build", {}, {}, {}), sound, print)
    schedule_of._capacity.memory = ASKED * 2**20
    assert schedule_of._more_memory(ASKED * 2**20) == "no node offers a task more than these 200 MB; add a node with more memory"
