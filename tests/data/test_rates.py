"""Channels at the rate that holds their band: read back they are what a night at 100 Hz gave, an epoch alone or in its night."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_nights import make_dataset, make_night
from webdataset import WebDataset

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.data.dataset import Dataset
from sleepfm.data.epochs import stored_and_read
from sleepfm.data.format import SIGNAL_SCALE, channel_member
from sleepfm.data.in_order import iter_record
from sleepfm.data.quantisation import dequantise, quantise
from sleepfm.data.reader import ShardReader
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.errors import ShardError
from sleepfm.inference.embed import prepared_epochs
from sleepfm.signals.cohorts.catalogue import all_cohorts
from sleepfm.signals.filters import preprocess, robust_scale
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.rates import REACH, SLOW_HZ, interpolate, stored_rate

ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=4"]
CHANNELS = ("EEG_C4", "AIRFLOW", "THORAX", "SPO2")
BANDS = {"AIRFLOW": [0.05, 1.0], "THORAX": [0.05, 1.0], "SPO2": [None, None], "EEG_C4": [0.5, 40.0]}
EPOCHS = 11
# The bound that docs/reading.md states, in units of the interquartile range.
BOUND = 0.0015
# Where the signal stops the interpolation has nothing to go by.
EDGE = REACH * 10


def breathing(record: str, epochs: int = EPOCHS) -> PreparedRecording:
    """A night whose slow channels have passed their filters, as preparing leaves them."""
    night = make_night(record, epochs, CHANNELS)
    rng = np.random.default_rng([1, *record.encode()])
    seconds = np.arange(epochs * 30 * 32) / 32
    for channel in ("AIRFLOW", "THORAX"):
        raw = np.sin(2 * np.pi * 0.27 * seconds + np.sin(seconds / 11)) + 0.1 * rng.standard_normal(len(seconds))
        night.channels[channel] = robust_scale(preprocess(raw.astype(np.float32), 32, channel))[0]
    reading = (95 + rng.integers(-4, 4, epochs * 30)).astype(np.float32)
    night.channels["SPO2"] = preprocess(reading, 1, "SPO2")
    night.provenance["channels"] = {channel: {"band": band} for channel, band in BANDS.items()}
    return night


def at_full_rate(night: PreparedRecording, channel: str) -> np.ndarray:
    """The epochs [E, 3000] as they would be read, had they been stored at 100 Hz; 0 where they are unusable."""
    read = dequantise(channel, quantise(channel, night.channels[channel])).reshape(-1, EPOCH_SAMPLES)
    return np.where(night.quality[channel][:, None] == 0, read, 0)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "out", [breathing("a"), breathing("b", 7)], overrides=ALL_PRETRAIN)


def test_the_bytes_are_those_of_the_rates(dataset: Dataset) -> None:
    assert dataset.rate[0, [1, 6, 7, 9]].tolist() == [100, 10, 10, 4]
    sample = next(iter(WebDataset(str(dataset.shard_paths[0]), shardshuffle=False).decode()))
    assert sample["json"]["rate"] == {"EEG_C4": 100, "AIRFLOW": 10, "THORAX": 10, "SPO2": 4}
    shapes = {channel: sample[channel_member(channel)].shape for channel in CHANNELS}
    assert shapes == {"EEG_C4": (4, 3000), "AIRFLOW": (4, 300), "THORAX": (4, 300), "SPO2": (4, 120)}


@pytest.mark.parametrize("record", ["a", "b"])
def test_what_is_read_differs_from_the_full_rate_by_at_most_the_stated_error(dataset: Dataset, record: str) -> None:
    night = breathing(record, {"a": EPOCHS, "b": 7}[record])
    found = torch.cat([batch.signals[:, 0] for batch in iter_record(dataset, record, CHANNELS, labels=())]).numpy()
    for place, channel in enumerate(CHANNELS):
        error = np.abs(found[:, place] - at_full_rate(night, channel)).reshape(-1)
        if channel in ("EEG_C4", "SPO2"):
            assert error.max() == 0
        else:
            assert 0 < error[:-EDGE].max() <= BOUND and error.max() < 0.2
            # No seam: the borders of epochs and samples are no worse than the middles.
            borders = np.arange(EPOCH_SAMPLES, len(error), EPOCH_SAMPLES)
            assert max(error[border - 20 : border + 20].max() for border in borders) <= BOUND


@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_an_epoch_is_the_same_in_every_request(dataset: Dataset, length: int) -> None:
    channels = ["AIRFLOW", "THORAX", "SPO2"]
    whole = next(iter_record(dataset, "a", channels, length=EPOCHS, labels=())).signals[0]
    windows = next(iter_record(dataset, "a", channels, length=length, labels=()))
    for window, first in zip(windows.signals, windows.first_epoch.tolist(), strict=True):
        assert torch.equal(window, whole[first : first + length])
    stream = EpochStream(dataset, "pretrain", channels, Reading(2), require_good_quality=False)
    batch = stream.batch(0, len(stream))
    seen = dict.fromkeys(channels, 0)
    for signal, record, first in zip(batch.signals, batch.record, batch.first_epoch.tolist(), strict=True):
        for place, channel in enumerate(channels):
            if record == "a" and torch.equal(signal, whole[first, place]):
                seen[channel] += 1
    usable = {channel: int((breathing("a").quality[channel] == 0).sum()) for channel in channels}
    assert seen == usable


def test_scoring_a_night_takes_what_its_shards_give(dataset: Dataset) -> None:
    stored = torch.cat([batch.signals[:, 0] for batch in iter_record(dataset, "a", CHANNELS, labels=())])
    for chunk in (1, 3, 4, 50):
        scored = torch.cat([signals for signals, _ in prepared_epochs(breathing("a"), CHANNELS, chunk)])
        assert torch.equal(stored, scored)


def test_a_neighbour_that_is_corrupt_costs_the_epochs_beside_it(dataset: Dataset) -> None:
    row = dataset.index_of("a")
    # The last epoch of the first sample: its neighbours are in two samples.
    at = int(dataset.offsets(channel_member("AIRFLOW"))[dataset.first_segment[row]]) + 3 * 600 + 5
    shard = dataset.shard_paths[dataset.shard_of[row]]
    content = bytearray(shard.read_bytes())
    content[at] ^= 1
    shard.write_bytes(content)
    stream = SequenceStream(dataset, "pretrain", ["AIRFLOW", "EEG_C4"], reading=Reading(0, max_corrupt=0.9), labels=())
    batch = stream.batch(0, len(stream))
    given = {first for record, first in zip(batch.record, batch.first_epoch.tolist(), strict=True) if record == "a"}
    assert given == set(range(EPOCHS)) - {2, 3, 4} and stream.report.skipped >= 3
    with pytest.raises(ShardError, match="a_0000, AIRFLOW, epoch 4 of a: its bytes from"):
        list(iter_record(dataset, "a", ["AIRFLOW"]))
    assert len(list(iter_record(dataset, "a", ["THORAX", "SPO2"], labels=(), reader=ShardReader(dataset)))) == 1


def test_bands_choose_their_rates() -> None:
    assert stored_rate("AIRFLOW", [0.05, 1.0]) == stored_rate("EEG_C3", [None, 1.0]) == SLOW_HZ
    # Snoring, or no filter at all, is not thrown away; neither is what nobody knows the band of.
    for band in ([0.05, 1.1], [0.05, 8.0], [0.05, None], None):
        assert stored_rate("AIRFLOW", band) == 100
    assert stored_rate("SPO2", [None, None]) == 4 and stored_rate("SPO2", None) == 100
    for cohort in all_cohorts().all():
        rates = {name: stored_rate(name, [band.low, band.high]) for name, band in cohort.filters.items()}
        slow = {name for name, rate in rates.items() if rate < 100}
        assert slow == {"AIRFLOW", "THORAX", "ABDOMEN", "SPO2"}, cohort.name


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_interpolation_goes_through_the_stored_samples_and_has_no_memory(epochs: int, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(-32767, 32768, (epochs, 300)).astype(np.int16)
    whole = interpolate([(steps, 0)])
    np.testing.assert_array_equal(whole.reshape(-1)[::10], steps.reshape(-1))
    alone = [(steps[max(0, n - 1) : n + 2], (n > 0) + 2 * (n + 1 < epochs)) for n in range(epochs)]
    np.testing.assert_array_equal(interpolate(alone), whole)
    # Sums are exact, so that their order, and with it the processor, plays no part.
    taps = whole * 2.0**24
    np.testing.assert_array_equal(taps, np.rint(taps))


def test_waves_of_the_band_come_back() -> None:
    seconds = np.arange(4 * EPOCH_SAMPLES) / 100
    for frequency, phase in itertools.product((0.05, 0.3, 1.0, 2.0, 2.9), (0.0, 0.7)):
        wave = (8 * np.sin(2 * np.pi * frequency * seconds + phase)).astype(np.float32)
        error = np.abs(stored_and_read("THORAX", wave, SLOW_HZ, 0, 4).reshape(-1) - wave)
        assert error[EDGE:-EDGE].max() <= 1.2 * SIGNAL_SCALE


def test_clipped_samples_stay_within_what_can_be_stored() -> None:
    seconds = np.arange(2 * EPOCH_SAMPLES) / 100
    wave = (60 * np.sin(2 * np.pi * 0.5 * seconds)).astype(np.float32)
    read = stored_and_read("THORAX", wave, SLOW_HZ, 0, 2)
    assert np.abs(read).max() <= 32 * (1 + 1e-6)


def test_what_no_filter_has_ended_is_folded_by_no_more_than_its_stop_band_lets_pass() -> None:
    """White noise at 200 Hz, the worst that a belt can give: 53 dB are left of what lies beyond 3 Hz."""
    raw = np.random.default_rng(3).standard_normal(20 * 30 * 200).astype(np.float32)
    signal = robust_scale(preprocess(raw, 200, "THORAX"))[0]
    error = np.abs(stored_and_read("THORAX", signal, SLOW_HZ, 0, 20).reshape(-1) - signal)
    assert 0.002 < error[:-EDGE].max() < 0.012
