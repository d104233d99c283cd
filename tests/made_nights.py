"""Prepared recordings and data sets of random content, for tests that need no EDF and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.build_config import identity, load_build_config
from shards.manifest import write_manifest
from shards.plan import Entry, Plan, ShardPlan, write_plan
from shards.samples import QuantisedRecording, quantise_recording
from shards.task import write_shard
from sleepfm.config import digest
from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import LABELS
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import Quality
from sleepfm.signals.rates import recording_rate, thin_out
from sleepfm.signals.scorings.scoring import Event

EVERY_CHANNEL = ("EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "EMG_CHIN", "ECG", "AIRFLOW", "SPO2")


def make_night(
    record: str,
    n_epochs: int,
    channels: Sequence[str] = EVERY_CHANNEL,
    subject: str = "",
    seed: int = 0,
    scored: bool = True,
) -> PreparedRecording:
    """A night whose every sample encodes its epoch: random values with epoch, channel and record known from them."""
    rng = np.random.default_rng([seed, *record.encode()])
    size = n_epochs * EPOCH_SAMPLES
    signals = {name: rng.standard_normal(size, np.float32) for name in channels}
    if "SPO2" in signals:
        signals["SPO2"] = 95 + np.round(signals["SPO2"], 2)
    stage = rng.integers(-1, 5, n_epochs).astype(np.int8) if scored else np.full(n_epochs, -1, np.int8)
    labels = {
        name: (rng.random(n_epochs) < 0.2).astype(np.int8) if scored else np.full(n_epochs, -1, np.int8) for name in LABELS[1:]
    }
    events = tuple(Event(float(onset), 20.0, "hypopnea") for onset in np.sort(rng.uniform(0, n_epochs * 30, n_epochs // 10)))
    quality = {name: np.where(rng.random(n_epochs) < 0.1, Quality.FLAT.value, 0).astype(np.uint8) for name in channels}
    return PreparedRecording(
        record=record,
        subject=subject or f"made-{record}",
        visit="1",
        cohort="made",
        path=Path(f"{record}.edf"),
        n_epochs=n_epochs,
        stage=stage,
        labels=labels,
        events=events if scored else (),
        channels=signals,
        median=dict.fromkeys(channels, 0.5),
        iqr=dict.fromkeys(channels, 10.0),
        quality=quality,
        provenance={"montage": {name: name for name in channels}},
    )


def quantised(night: PreparedRecording) -> QuantisedRecording:
    """``night`` as shards store it."""
    rates = {name: recording_rate(night.provenance, name) for name in night.channels}
    return quantise_recording(night, ((name, thin_out(samples, rates[name])) for name, samples in night.channels.items()))


def make_dataset(out: Path, nights: Sequence[PreparedRecording], per_shard: int = 2, overrides: Sequence[str] = ()) -> Dataset:
    """``nights`` as a data set in ``out``, through the writer that builds use."""
    config = load_build_config(None, overrides)
    by_record = {night.record: quantised(night) for night in nights}
    entries = [Entry(f"{night.record}.edf", 1000, night.record) for night in nights]
    plan = Plan(
        identity(config),
        tuple(
            ShardPlan(f"shard-{number:06d}.tar", tuple(entries[begin : begin + per_shard]))
            for number, begin in enumerate(range(0, len(entries), per_shard))
        ),
    )
    (out / "shards").mkdir(parents=True)
    write_plan(out, plan)
    for shard in plan.shards:
        write_shard(out, shard, lambda entry: by_record[entry.record], config, digest(plan.identity), Path("/source"))
    write_manifest(out, plan)
    return Dataset.open(out)
