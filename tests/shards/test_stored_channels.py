"""What of a recording is stored, and what it takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shards.build_config import load_build_config
from sleepfm.constants import CHANNELS
from sleepfm.data.dataset import Dataset
from sleepfm.data.in_order import iter_record
from sleepfm.errors import ConfigError

# An epoch of ten channels at 100 Hz, as the first schema stored them.
FULL_EPOCH = 10 * 6000


def test_a_cohort_takes_a_third_less_than_at_100_hz(built: Path, run) -> None:
    dataset = Dataset.open(built)
    assert len(dataset.records) and all(len(row.channels) == 10 for row in dataset.records)
    counts = dataset.description["counts"]
    assert counts["bytes"] < 0.67 * FULL_EPOCH * counts["epochs"]
    assert dataset.rate.tolist() == [[100] * 6 + [10] * 3 + [4]] * len(dataset)
    table = [line.split() for line in run(["info", built]).stdout.splitlines()]
    rates = {words[0]: words[1] for words in table if words and words[0] in CHANNELS}
    assert rates == dict(zip(CHANNELS, ["100"] * 6 + ["10"] * 3 + ["4"], strict=True))


def test_only_wanted_channels_are_stored_and_they_are_the_same(built: Path, cohort: Path, tmp_path: Path, run) -> None:
    out = tmp_path / "out"
    arguments = ["build", cohort, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    done = run([*arguments, "channels=[SPO2,EEG_C4,THORAX]"])
    assert done.returncode == 0, done.stdout
    some, every = Dataset.open(out), Dataset.open(built)
    assert {row.channels for row in some.records} == {("EEG_C4", "THORAX", "SPO2")}
    for row in some.records:
        one = next(iter_record(some, row.record, row.channels, windows=100))
        other = next(iter_record(every, row.record, row.channels, windows=100))
        assert np.array_equal(one.signals, other.signals) and np.array_equal(one.present, other.present)
    # The order in which they are named is nothing; others are another data set.
    assert run([*arguments, "channels=[THORAX,SPO2,EEG_C4]"]).returncode == 0
    refused = run([*arguments, "channels=[THORAX]"])
    assert refused.returncode == 2 and "holds a build with channels=" in refused.stderr
    assert run(["verify", out]).returncode == 0


def test_a_recording_without_any_wanted_channel_is_refused(cohort: Path, tmp_path: Path, run) -> None:
    rules = tmp_path / "few.yaml"
    rules.write_text("extends: shhs1.yaml\nname: few\nchannels: {SPO2: []}\n")
    done = run(["build", cohort, tmp_path / "out", "--cohort", rules, "channels=[SPO2]"])
    assert done.returncode == 1 and "no usable signal in any channel" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["recordings=2"], "`recordings` is called `recordings_per_shard` now"),
        (["channels=[]"], "channels"),
        (["channels=[ECG,C4]"], "C4"),
        (["channels=[ECG,EEG_C4,ECG]"], "key 'channels': ECG is given more than once"),
        (["require=[ECG,ECG]"], "key 'require': ECG is given more than once"),
        (["split.stratify=[age,sex,age]"], "key 'split.stratify': age is given more than once"),
        (["channels=[ECG]", "require=[EEG_C4]"], "EEG_C4 are in `require` but not in `channels`"),
    ],
)
def test_wrong_choices_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_build_config(None, overrides)
    assert said in str(caught.value)


def test_a_build_on_a_cluster_says_that_workers_is_ignored(built: Path, cohort: Path, run) -> None:
    arguments = ["build", cohort, built, "--cohort", "shhs1", "recordings_per_shard=2"]
    said = run([*arguments, "--workers", "3"]).stdout
    assert re.match(r"--workers 3 is ignored: the work goes to all CPUs of the Ray cluster at [\d.]+:\d+\n", said)
    assert "--workers" not in run(arguments).stdout
