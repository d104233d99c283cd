"""What a data set keeps of scorings: the rule of events, what was not understood, and what refused a scoring."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_nights import make_dataset, make_night

from shards.__main__ import main
from shards.build_config import identity, load_build_config
from shards.export import export_parquet
from shards.info import info
from shards.plan import read_plan
from shards.stale import refuse_stale, stale_shards
from sleepfm.config import digest
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import DATASET_FILE
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events, unclear_events
from sleepfm.errors import ConfigError
from sleepfm.signals.scorings.labels import LABEL_EVENTS, RULE_VERSION, event_labels
from sleepfm.signals.scorings.scoring import Event, Scoring
from sleepfm.stages.second_labels import SecondLabels

EPOCHS = 70  # more than one sample
EVENTS = (
    Event(65.0, 20.0, "apnea"),
    Event(125.0, 20.0, "hypopnea"),
    Event(1795.0, 20.0, "central_apnea"),
    Event(901.5, 0.0, "hypopnea"),
)
UNCLEAR = (Event(140.0, 20.0, "Unsure"), Event(1790.0, 30.0, "odd apnoea"), Event(300.0, 0.0, "Apnea?"))


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    night = make_night("a", EPOCHS)
    night.stage[:] = 2
    scoring = Scoring((), EVENTS, "", True, unclear=UNCLEAR)
    provenance = {
        "scoring": {"unclear": {"Unsure": 1, "odd apnoea": 1, "Apnea?": 1}, "ignored": {"Foobar": 4, "Lights off": 2}},
        "scoring_refused": "",
    }
    labels = {name: event_labels(scoring, EPOCHS, types) for name, types in LABEL_EVENTS.items()}
    nights = [replace(night, events=EVENTS, unclear=UNCLEAR, labels=labels, provenance=provenance)]
    refused = {"scoring": None, "scoring_refused": "b.csv: unknown stage texts: 'SW' (3)"}
    nights.append(replace(make_night("b", 7, scored=False), provenance=refused))
    return make_dataset(tmp_path / "out", nights)


def test_events_and_what_was_not_understood_read_back(dataset):
    reader = ShardReader(dataset)
    assert sorted(scored_events(dataset, reader, 0), key=lambda event: event.onset) == sorted(
        EVENTS, key=lambda event: event.onset
    )
    assert set(unclear_events(dataset, reader, 0)) == set(UNCLEAR) and unclear_events(dataset, reader, 1) == ()
    # The shards of an older build say nothing of it.
    header = json.dumps({"events": []}).encode()
    assert json.loads(header).get("unclear", ()) == ()


def test_no_second_that_was_not_understood_is_a_negative(dataset):
    """Also in an epoch that holds an event for certain, whose other seconds are negatives."""
    labels = {
        name: event_labels(Scoring((), EVENTS, "", True, unclear=UNCLEAR), EPOCHS, LABEL_EVENTS[name])
        for name in ("apnea", "hypopnea")
    }
    for task, kinds in (("apnea", ("apnea", "central_apnea")), ("hypopnea", ("hypopnea",))):
        seconds = SecondLabels(dataset, task).of(0, labels).numpy()
        events = [event for event in EVENTS if event.type in kinds]
        for second in range(EPOCHS * 30):
            inside = any(event.onset <= second + 0.5 < event.onset + event.duration for event in events)
            doubtful = any((e.onset < second + 1 and e.onset + e.duration > second) or e.onset == second for e in UNCLEAR)
            if labels[task][second // 30] < 0 or (doubtful and not inside):
                assert seconds[second] == -1, second
            else:
                assert seconds[second] == inside, second
    assert labels["hypopnea"][4] == 1 and SecondLabels(dataset, "hypopnea").of(0, labels)[140:160].tolist() == [1] * 5 + [-1] * 15


def test_an_export_says_what_is_not_known(dataset, tmp_path):
    list(export_parquet(dataset.path, tmp_path / "parquet"))
    y = pq.read_table(tmp_path / "parquet" / "a" / "y.parquet").to_pandas()
    for name, own in (("Obstructive Apnea", []), ("Central Apnea", [60]), ("Mixed Apnea", [])):
        assert np.flatnonzero(y[name] == 1).tolist() == own
        unknown = [epoch for epoch in (2, 4, 5, 10, 59, 60) if epoch not in own]
        assert np.flatnonzero(y[name] == -1).tolist() == unknown, name
    assert np.flatnonzero(y["Hypopnea"] == 1).tolist() == [4, 30]
    assert np.flatnonzero(y["Hypopnea"] == -1).tolist() == [5, 10, 59, 60]
    assert (y["SpO2 Desaturation"] == 0).all()


def test_info_lists_texts_and_the_rule(dataset, capsys):
    assert main(["info", str(dataset.path)]) == 0
    text = capsys.readouterr().out
    assert "events   overlap, version 2: an event labels the epoch of its largest overlap and every epoch" in text
    assert "scoring not used: b.edf: b.csv: unknown stage texts: 'SW' (3)" in text
    assert "epochs without a label of apnea and hypopnea: 'Apnea?' 1, 'Unsure' 1, 'odd apnoea' 1" in text
    assert "not understood, without effect: 'Foobar' 4\n" in text and "ignored: 'Lights off' 2\n" in text


def test_the_rule_and_its_version_shape_a_data_set(dataset, monkeypatch):
    """The digest covers them, and a folder of another version is not continued."""
    config = load_build_config()
    now = identity(config)
    assert dataset.config["event_rule"] == "overlap" and dataset.config["event_rule_version"] == RULE_VERSION["overlap"]
    monkeypatch.setitem(RULE_VERSION, "overlap", 99)
    other = identity(config)
    assert digest(other) != digest(now)
    plan = read_plan(dataset.path, other)
    stale = stale_shards(dataset.path, plan, other, config)
    assert list(stale) == ["shard-000000.tar"] and not stale_shards(dataset.path, plan, now, config)
    with pytest.raises(ConfigError, match=r"1 of its 1 shard .*event_rule_version=2, which is 99 now.*Use --rebuild"):
        refuse_stale(dataset.path, plan, stale)


def test_a_data_set_of_the_first_rule_is_read_and_said_to_be_one(tmp_path, monkeypatch):
    """Before the rule had a version, data sets named none: what they say of it is what they did."""
    import made_nights

    def before(config):
        return {key: value for key, value in identity(config).items() if key != "event_rule_version"}

    monkeypatch.setattr(made_nights, "identity", before)
    dataset = make_dataset(tmp_path / "old", [make_night("a", 9)])
    stored = json.loads((dataset.path / DATASET_FILE).read_text())
    assert "event_rule_version" not in stored["config"]
    assert "events   overlap, version 1: " in info(dataset.path) and "may label none" in info(dataset.path)
    config = load_build_config()
    stale = stale_shards(dataset.path, read_plan(dataset.path, identity(config)), identity(config), config)
    assert stale == {"shard-000000.tar": "with event_rule_version=None, which is 2 now"}
