"""What a task asks for follows from its recordings' headers."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from shards.build_config import load_build_config
from shards.cluster import IN_FLIGHT_PER_CPU, cluster, run_shards
from shards.memory import BASE_BYTES, read_extents, recording_memory, task_memory, wanted_labels
from shards.plan import Entry, ShardPlan
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.recording import read_edf_extent


def test_memory_grows_with_hours_and_rates_of_what_is_read(cohort):
    edf = min(cohort.rglob("*.edf"))
    header, seconds = read_edf_extent(edf)
    labels = wanted_labels(load_cohort("shhs1"))
    need = recording_memory(header, seconds, labels)
    hours = seconds / 3600
    # A 10-h night of SHHS stays within what a worker may take.
    assert BASE_BYTES + need * 10 / hours < 450 * 2**20
    assert recording_memory(header, seconds, frozenset({"sound"})) >= need
    # Pauses of a discontinuous recording are filled in.
    assert recording_memory(header, 3 * seconds, labels) == pytest.approx(3 * need, abs=10)
    assert labels < wanted_labels(None)
    extents = read_extents(edf.parent, [edf.name, "missing.edf"])
    assert extents == {edf.name: (header, seconds)}
    assert task_memory([(header, seconds)], labels) == task_memory(extents.values(), labels) > BASE_BYTES
    assert task_memory([], labels) == BASE_BYTES


def test_signals_count_by_what_their_labels_say(cohort):
    header, _ = read_edf_extent(min(cohort.rglob("*.edf")))
    first = header.ordinary[0]

    def need(label: str) -> int:
        signals = (replace(first, label=label, samples=500), replace(first, label="Airflow", samples=10))
        return recording_memory(replace(header, signals=signals), 3600.0, wanted_labels(load_cohort("generic")))

    assert need("EEG (c3:a2)") == need("C3-M2-0") > 2 * need("Stim")


def test_the_driver_plans_no_further_than_a_few_tasks_ahead(connection, tmp_path):
    """Of shards that come from a generator, only so many are taken that are not reported yet."""
    (tmp_path / "shards").mkdir()
    taken = count()
    most = waiting = 0

    def shards():
        nonlocal most, waiting
        for number in range(60):
            next(taken)
            waiting += 1
            most = max(most, waiting)
            yield ShardPlan(f"shard-{number:06d}.tar", (Entry(f"{number}.edf", 1, f"missing-{number}"),))

    def report(news):
        nonlocal waiting
        waiting -= news is not None

    with cluster(1) as ray:
        run_shards(ray, shards(), Path("/nowhere"), tmp_path, load_build_config(), "build", report)
        cpus = ray.cluster_resources()["CPU"]
    assert waiting == 0 and next(taken) == 60
    assert most <= IN_FLIGHT_PER_CPU * cpus
    assert len(list((tmp_path / "shards").glob("*.json"))) == 60


def test_a_number_holds_for_all_tasks():
    assert load_build_config(None, ["ray.task_memory_mb=512"]).ray.task_memory_mb == 512
    assert load_build_config().ray.task_memory_mb == "auto"
    with pytest.raises(Exception, match="task_memory_mb"):
        load_build_config(None, ["ray.task_memory_mb=8"])
