"""Tasks that fail, clusters that are too small or not there."""

from __future__ import annotations

import os

import pytest
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
        with pytest.raises(ShardError, match=r"(?s)1 shards failed.*shard-000000.*TypeError"):
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
