"""Signals to int16 and back, and what the manifest says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_nights import make_dataset, make_night, quantised

from shards.build_config import load_build_config
from shards.plan import Entry, ShardPlan
from shards.samples import epoch_labels
from shards.task import Refusal, read_sidecar, write_shard


def test_respiratory_labels_need_a_stage_and_keep_wake():
    night = make_night("a", 200)
    labels = epoch_labels(night)
    unscored = night.stage < 0
    for name in ("apnea", "hypopnea", "desaturation"):
        assert (labels[name][unscored] == -1).all()
        assert (labels[name][~unscored] == night.labels[name][~unscored]).all()
    assert set(labels["apnea"][night.stage == 0]) == {0, 1}
    assert (labels["arousal"] == night.labels["arousal"]).all()
    assert (epoch_labels(make_night("b", 20, scored=False))["apnea"] == -1).all()


def test_the_manifest_counts_what_the_night_holds(tmp_path):
    channels = ("EEG_C4", "ECG")
    night = make_night("a", 50, channels, subject="someone")
    night.channels["ECG"][:10] = 1000
    dataset = make_dataset(tmp_path / "out", [night, make_night("b", 4, scored=False)])
    row = pq.read_table(dataset.path / "manifest" / "records.parquet").to_pylist()[0]
    reference = make_night("a", 50, channels)
    assert row["subject"] == "someone" and row["channels"] == ["EEG_C4", "ECG"] and row["n_epochs"] == 50
    assert row["scored_epochs"] == np.count_nonzero(reference.stage >= 0)
    assert row["epochs_REM"] == np.count_nonzero(reference.stage == 4)
    assert row["usable_ECG"] == np.count_nonzero(reference.quality["ECG"] == 0) and row["usable_EEG_C3"] == 0
    assert json.loads(row["signals"])["ECG"] == {"median": 0.5, "iqr": 10.0, "clipped_samples": 10}
    assert [record.has_events for record in dataset.records] == [True, False]


def test_a_programming_error_names_the_recording_and_leaves_nothing(tmp_path):
    (tmp_path / "shards").mkdir()
    plan = ShardPlan("shard-000000.tar", (Entry("a.edf", 1, "a"), Entry("b.edf", 1, "b")))

    def night_of(entry):
        if entry.record == "b":
            raise ZeroDivisionError("a fault in the code")
        return quantised(make_night("a", 2))

    with pytest.raises(ZeroDivisionError) as caught:
        write_shard(tmp_path, plan, night_of, load_build_config(), "build", Path("/source"))
    assert caught.value.__notes__ == ["while converting /source/b.edf"]
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_of_refusals_is_done_without_a_tar(tmp_path):
    (tmp_path / "shards").mkdir()
    plan = ShardPlan("shard-000000.tar", (Entry("a.edf", 1, "a"),))
    refusal = Refusal("a.edf", 1, "RecordingError", "why")
    write_shard(tmp_path, plan, lambda entry: refusal, load_build_config(), "build", Path("/source"))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["shard-000000.json"]
    sidecar = read_sidecar(tmp_path, plan, "build")
    assert sidecar is not None and sidecar["quarantine"][0]["reason"] == "why"
    assert read_sidecar(tmp_path, plan, "another build") is None
    assert read_sidecar(tmp_path, ShardPlan(plan.name, (Entry("a.edf", 2, "a"),)), "build") is None
