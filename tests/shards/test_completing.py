"""Uploads that end after their task: put together by the driver, once, by whoever builds, or made again by the shard's task."""

from __future__ import annotations

import hashlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import completing
from shards.build_config import load_build_config
from shards.lease import Builder, only_builder
from shards.plan import Entry, ShardPlan
from shards.schedule import News, Schedule, Work
from shards.store import PART_BYTES, Store, Upload
from shards.task import Outcome
from shards.task_folder import Arrived, complete, task_folder
from sleepfm.errors import BusyError, ShardError, StorageError
from sleepfm.files import atomic_file, write_json
from sleepfm.signals.files import location

SHARDS = 6
CONTENT = b"x" * (2 * PART_BYTES + 5)


def url(name: str) -> Path:
    return location(f"s3://sleep/completing-{name}")


def allowed() -> None:
    pass


def made(out: Path, shard: str, builder: Builder | None, hand_over: Callable[[Arrived], object] | None) -> None:
    """As far as a store is concerned: a tar of which parts arrive while it is written, and its sidecar."""
    with task_folder(out, shard, builder, hand_over) as folder:
        with atomic_file(folder / "shards" / shard) as file:
            for begin in range(0, len(CONTENT), PART_BYTES):
                file.write(CONTENT[begin : begin + PART_BYTES])
                file.flush()
                time.sleep(0.4)
        sidecar = (folder / "shards" / shard).with_suffix(".json")
        write_json(sidecar, {"sha256": hashlib.sha256(CONTENT).hexdigest()})


def arrived(out: Path, builder: Builder | None = None) -> Arrived:
    """What a task hands over, as it comes to the driver."""
    left: list[Arrived] = []
    made(out, "shard-000000.tar", builder, left.append)
    found: Arrived = pickle.loads(pickle.dumps(left[0]))  # as Ray does
    return found


def test_what_is_handed_over_is_no_object_until_it_is_completed(s3):
    out = url("handed")
    left = arrived(out)
    assert s3.names("completing-handed") == [] and s3.unfinished_uploads() == ["completing-handed/shards/shard-000000.tar"]
    asked = len(s3.requests())
    assert complete(out, left, allowed)
    assert s3.contents("completing-handed")["shards/shard-000000.tar"] == CONTENT
    assert s3.contents("completing-handed")["shards/shard-000000.json"] == left.sidecar
    assert s3.unfinished_uploads() == []
    # The tar is whole, and known to be, before its sidecar is there.
    kinds = [(line.split()[0], line.split("?")[0][-4:]) for line in s3.requests()[asked:] if "/shards/" in line]
    assert kinds[:3] == [("POST", ".tar"), ("HEAD", ".tar"), ("PUT", "json")]


def test_an_answer_that_was_lost_is_told_from_the_object(s3, monkeypatch):
    out, commit = url("lost"), Upload.commit

    def unheard(upload: Upload) -> None:
        commit(upload)
        raise TimeoutError("no answer")

    monkeypatch.setattr(Upload, "commit", unheard)
    assert complete(out, arrived(out), allowed)
    assert sorted(s3.names("completing-lost")) == ["shards/shard-000000.json", "shards/shard-000000.tar"]


def test_what_another_has_put_is_left_to_the_task(s3):
    out = url("other")
    left = arrived(out)
    s3.put("completing-other/shards/shard-000000.tar", b"of another")
    assert not complete(out, left, allowed)
    assert s3.contents("completing-other") == {"shards/shard-000000.tar": b"of another"}
    assert s3.unfinished_uploads() == []


def test_a_builder_that_has_lost_its_lease_completes_nothing(s3):
    out = url("outrun")
    with only_builder(out, 5, print) as (first, _):
        left = arrived(out, first)
    with only_builder(out, 5, print), pytest.raises(BusyError, match="has lost its lease"):
        complete(out, left, first.checks())
    assert s3.names("completing-outrun/shards") == s3.unfinished_uploads() == []


def test_a_shard_of_which_something_is_there_is_not_handed_over(s3):
    out = url("there")
    s3.put("completing-there/shards/shard-000000.json", b"damaged")
    left: list[Arrived] = []
    made(out, "shard-000000.tar", None, left.append)
    assert not left and s3.contents("completing-there")["shards/shard-000000.tar"] == CONTENT


def build(ray: Any, out: Path, report: Callable[[News], object]) -> None:
    """The shards that :func:`made` makes, on the tests' cluster, by the driver's own schedule."""

    def task(*arguments: Any) -> Outcome:
        _, out, shard, *_, builder, hand_over = arguments
        left: list[Any] = []
        made(out, shard.name, builder, left.append if hand_over else None)
        return Outcome(shard.name, 1, 1.0, 1.0, (), left[0] if left else None)

    shards = [ShardPlan(f"shard-{n:06d}.tar", (Entry(f"{n}.edf", 1, f"r{n}"),)) for n in range(SHARDS)]
    config = load_build_config(None, ["ray.task_memory_mb=200"])
    with only_builder(out, 60, print) as (builder, _):
        Schedule(ray, Work(out, out, config, "build", {}, {}, {}, builder), task, report).run(shards)


@pytest.fixture
def ray(connection) -> Iterator[Any]:
    """Connected to the cluster, whose workers know no module of the tests."""
    import ray as connected
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield connected
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_shards_are_converted_while_a_store_puts_others_together(s3, ray, monkeypatch):
    """It puts none together before the tasks of all have ended, of which two run at a time: workers wait for no store."""
    out, commit, news = url("overlap"), Upload.commit, list[News]()

    def late(upload: Upload) -> None:
        deadline = time.monotonic() + 120
        while len([line for line in s3.requests() if "/completing-overlap/shards/" in line and "partNumber=3" in line]) < SHARDS:
            assert time.monotonic() < deadline, "tasks wait for their uploads"
            time.sleep(0.1)
        assert not any(isinstance(each, Outcome) for each in news), "not complete, and counted"
        commit(upload)

    monkeypatch.setattr(Upload, "commit", late)
    build(ray, out, news.append)
    assert sorted(each.shard for each in news if isinstance(each, Outcome)) == [f"shard-{n:06d}.tar" for n in range(SHARDS)]
    assert len(s3.names("completing-overlap/shards")) == 2 * SHARDS and s3.unfinished_uploads() == []


def test_a_shard_whose_upload_fails_after_its_task_is_made_again(s3, ray, monkeypatch):
    out, commit = url("again"), Upload.commit

    def some(upload: Upload) -> None:
        if upload._object["Key"].endswith("-000001.tar"):
            raise TimeoutError("no answer")
        commit(upload)

    monkeypatch.setattr(Upload, "commit", some)
    build(ray, out, lambda news: None)
    found = s3.contents("completing-again/shards")
    assert len(found) == 2 * SHARDS and all(content == CONTENT for name, content in found.items() if name.endswith(".tar"))
    begun = [line for line in s3.requests() if line.startswith("POST") and "/completing-again/" in line and "?uploads" in line]
    assert len(begun) == SHARDS + 1 and sum("-000001.tar" in line for line in begun) == 2
    assert s3.unfinished_uploads() == []


def failing(error: Exception) -> Callable[..., bool]:
    def end(out: Path, left: Arrived, check: Callable[[], None]) -> bool:
        if left.tar.endswith("-000001.tar"):
            raise error
        return complete(out, left, check)

    return end


def test_a_fault_after_its_task_fails_the_shard_by_name(s3, ray, monkeypatch):
    monkeypatch.setattr(completing, "complete", failing(RuntimeError("broken")))
    with pytest.raises(ShardError, match=r"1 shard failed, the others are finished.*\nshard-000001.tar: .*RuntimeError: broken"):
        build(ray, url("faulty"), lambda news: None)
    assert len(s3.names("completing-faulty/shards")) == 2 * (SHARDS - 1)
    Store(url("faulty")).abandon_uploads("shards", r".*\.tar")
    assert s3.unfinished_uploads() == []


def test_a_store_that_takes_nothing_ends_the_build_and_nothing_is_put_after_it(s3, ray, monkeypatch):
    monkeypatch.setattr(completing, "complete", failing(StorageError("full")))
    with pytest.raises(StorageError, match="full"):
        build(ray, url("full"), lambda news: None)
    asked = len(s3.requests())
    names = s3.names("completing-full/shards")
    assert "shard-000001.json" not in names
    time.sleep(1)
    assert not [line for line in s3.requests()[asked:] if line.startswith(("PUT", "POST")) and "completing-full/shards" in line]
    Store(url("full")).abandon_uploads("shards", r".*\.tar")
