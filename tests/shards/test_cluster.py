"""Tasks that fail, clusters that are too small or not there."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from shards.build_config import load_build_config
from shards.cluster import check_paths, cluster, run_shards
from shards.plan import Entry, ShardPlan
from shards.task import Failure, Outcome
from sleepfm.errors import ConfigError, ShardError, StorageError, UsageError


def test_a_failing_task_is_reported_after_the_others_have_finished(cohort, connection, tmp_path):
    (tmp_path / "shards").mkdir()
    edf = min(cohort.rglob("*.edf"))
    good = ShardPlan("shard-000001.tar", (Entry(edf.relative_to(cohort).as_posix(), edf.stat().st_size, "good"),))
    # A size that is no number is a fault in the code, not in a recording.
    bad = ShardPlan("shard-000000.tar", (Entry(good.entries[0].path, {1}, "bad"),))  # type: ignore[arg-type]
    outcomes = []
    with cluster(1) as ray:
        with pytest.raises(ShardError, match=r"(?s)1 shard failed.*shard-000000.*TypeError"):
            run_shards(ray, [bad, good], cohort, tmp_path, load_build_config(), "build", outcomes.append)
        assert {news.shard: type(news) for news in outcomes if news} == {
            "shard-000000.tar": Failure,
            "shard-000001.tar": Outcome,
        }
        with pytest.raises(StorageError, match="cannot be written"):
            run_shards(ray, [good], cohort, tmp_path / "gone", load_build_config(), "build", outcomes.append)
        huge = load_build_config(None, ["ray.task_memory_mb=100000000"])
        with pytest.raises(ConfigError, match="no node of the Ray cluster offers"):
            run_shards(ray, [good], cohort, tmp_path, huge, "build", outcomes.append)


def test_relative_paths_are_refused_in_a_job_alone(monkeypatch):
    check_paths("relative", "/absolute")
    # Ray's own name of the variable that its job supervisor sets for the entry point.
    monkeypatch.setitem(os.environ, RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    check_paths("/absolute")
    with pytest.raises(UsageError, match="relative"):
        check_paths("/absolute", "relative")


class Refusing(grpc.GenericRpcHandler):
    """A head that answers every question with ``status``."""

    def __init__(self, status):
        self.status = status

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(self.status, "no"))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, r"the Ray cluster there asks for a token, .*; set RAY_AUTH_MODE=token, and RAY_AUTH_"),
        (grpc.StatusCode.UNIMPLEMENTED, r"cannot work on the Ray cluster there \(Failed to connect\); unset it"),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_told_from_a_broken_one(status, said, monkeypatch):
    def refused(**_):
        raise ConnectionError("Failed to connect")

    with ThreadPoolExecutor(1) as threads:
        head = grpc.server(threads, handlers=(Refusing(status),))
        address = f"127.0.0.1:{head.add_insecure_port('127.0.0.1:0')}"
        head.start()
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "init", refused)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: {said}"), cluster(1):
            pass
        head.stop(None).wait()


def test_how_long_was_waited_is_told_only_where_it_was_waited(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr("shards.cluster.ANSWER_SECONDS", 0.2)
        said = rf"{address}: no Ray cluster answers there within 0.2 s \(something else listens there\); start one"
        with pytest.raises(ConfigError, match=said), cluster(1):
            pass
    said = rf"{address}: no Ray cluster answers there \(Connection refused\); start one \(ray start --head\), or unset"
    with pytest.raises(ConfigError, match=said), cluster(1):
        pass
    monkeypatch.setattr(socket, "create_connection", lambda *_: (_ for _ in ()).throw(TimeoutError("timed out")))
    with pytest.raises(ConfigError, match=r"no Ray cluster answers there within 0\.2 s; start one"), cluster(1):
        pass
