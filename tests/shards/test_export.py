"""The layout of the reference's parser: what its loaders look for, with our samples and labels in it."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_nights import make_dataset, make_night

from shards.__main__ import main
from shards.export import export_parquet
from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.errors import DatasetError
from sleepfm.signals.quality import unusable

EPOCHS = 100  # more than one sample
# Channels and events in the order of the reference's parser.
SIGNALS = ["EEG_C4", "EEG_C3", "EOG_Left", "EOG_Right", "ECG", "EMG_Chin", "Airflow"]
EVENTS = ["Obstructive Apnea", "Central Apnea", "Mixed Apnea", "Hypopnea", "SpO2 Desaturation"]


@pytest.fixture
def dataset(tmp_path):
    nights = [make_night("a", EPOCHS), make_night("b", 7, ("EEG_C4", "ECG"), scored=False)]
    return make_dataset(tmp_path / "out", nights)


def test_each_recording_is_a_folder_with_the_columns_of_the_reference(dataset, tmp_path, capsys):
    original = make_night("a", EPOCHS)
    assert main(["export", str(dataset.path), str(tmp_path / "parquet"), "--format", "parquet"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["1", "a"], ["2", "b"]]
    assert sorted(path.relative_to(tmp_path / "parquet").as_posix() for path in (tmp_path / "parquet").rglob("*.*")) == [
        f"{record}/{name}" for record in "ab" for name in (".sleepfm.json", "x.parquet", "y.parquet")
    ]  # fmt: skip
    x, y = (pq.read_table(tmp_path / "parquet" / "a" / f"{name}.parquet") for name in "xy")
    assert x.column_names == SIGNALS and y.column_names == [*EVENTS, "Sleep Stage"]
    assert x.num_rows == EPOCHS * EPOCH_SAMPLES and y.num_rows == EPOCHS
    for column, channel in [("EEG_C4", "EEG_C4"), ("EMG_Chin", "EMG_CHIN"), ("EOG_Left", "EOG_L"), ("Airflow", "AIRFLOW")]:
        # What is unusable is 0, as in training.
        usable = np.repeat(~unusable(original.quality[channel]), EPOCH_SAMPLES)
        assert 0 < usable.mean() < 1
        expected = np.where(usable, original.channels[channel], 0)
        np.testing.assert_allclose(x[column].to_numpy(), expected, atol=6e-4)  # half a step of int16
    assert y["Sleep Stage"].to_numpy().tolist() == original.stage.tolist()
    hypopnea = np.zeros(EPOCHS, int)
    for event in original.events:  # of 20 s each: an epoch counts that holds at least 10 of them
        for epoch in range(EPOCHS):
            hypopnea[epoch] |= min(event.onset + 20, 30 * epoch + 30) - max(event.onset, 30 * epoch) >= 10
    # An epoch without a stage is unknown, in every column as in the labels that the shards hold.
    hypopnea[original.stage < 0] = -1
    assert {*hypopnea.tolist()} == {-1, 0, 1} and y["Hypopnea"].to_numpy().tolist() == hypopnea.tolist()
    nothing = np.where(original.stage < 0, -1, 0).tolist()
    assert all(y[name].to_numpy().tolist() == nothing for name in EVENTS if name != "Hypopnea")


def test_what_a_recording_lacks_is_no_column_and_what_nobody_scored_is_unknown(dataset, tmp_path):
    assert list(export_parquet(dataset.path, tmp_path / "parquet")) == ["a", "b"]
    x, y = (pq.read_table(tmp_path / "parquet" / "b" / f"{name}.parquet") for name in "xy")
    assert x.column_names == ["EEG_C4", "ECG"]
    assert {tuple(y[name].to_numpy().tolist()) for name in y.column_names} == {(-1,) * 7}


def test_the_rounding_of_the_reference_is_an_option(dataset, tmp_path):
    list(export_parquet(dataset.path, tmp_path / "parquet", "reference"))
    found = pq.read_table(tmp_path / "parquet" / "a" / "y.parquet")["Hypopnea"].to_numpy()
    expected = np.zeros(EPOCHS, int)
    for event in make_night("a", EPOCHS).events:
        expected[round(event.onset / 30) : round((event.onset + event.duration) / 30)] = 1
    expected[make_night("a", EPOCHS).stage < 0] = -1
    assert found.tolist() == expected.tolist()


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(DatasetError, match="is not an export"):
        list(export_parquet(dataset.path, folder))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
