"""The monitor: bounded, from ``label`` to ``val`` alone, and right about encoders that know much or nothing."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from made_nights import make_dataset, make_night
from torch import Tensor, nn

from sleepfm.data.dataset import Dataset
from sleepfm.errors import DatasetError
from sleepfm.stages.monitor import Monitor, MonitorConfig

CHANNELS = ("EEG_C4",)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Noise whose strength tells the stage."""
    nights = [make_night(f"night{number}", 20, seed=number) for number in range(16)]
    for night in nights:
        strength = np.repeat(1 + np.maximum(night.stage, 0), 3000).astype(np.float32)
        night.channels["EEG_C4"] *= strength
    found = make_dataset(tmp_path_factory.mktemp("monitor") / "set", nights, per_shard=4)
    assert {row.split for row in found.records} == {"pretrain", "label", "val", "test"}
    return found


class Encoder(nn.Module):
    """Embeds by a fixed function of the signal, and counts what it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.function = function
        self.epochs = 0
        self.seen: list[Tensor] = []

    def encode(self, signals: Tensor, present: Tensor, channels: Sequence[str]) -> Tensor:
        self.epochs += len(signals)
        self.seen.append(signals.clone())
        return self.function(signals)


def strength(signals: Tensor) -> Tensor:
    power = signals.flatten(1).std(1, keepdim=True)
    return torch.cat([power, power.square(), power.log()], 1)


def monitor(dataset: Dataset, **settings: int) -> Monitor:
    return Monitor(dataset, CHANNELS, MonitorConfig(**settings), seed=7)


def test_an_encoder_that_knows_the_stage_is_told_from_one_that_does_not(dataset: Dataset) -> None:
    knows = monitor(dataset)(Encoder(strength))
    assert knows["val/probe_kappa"] > 0.9
    assert knows["val/knn_kappa"] > 0.9
    ignorant = monitor(dataset)(Encoder(lambda signals: signals.flatten(1)[:, :8].tanh()))
    assert abs(ignorant["val/probe_kappa"]) < 0.3
    constant = monitor(dataset)(Encoder(lambda signals: torch.ones(len(signals), 3)))
    assert constant["val/probe_kappa"] == 0
    assert constant["val/knn_kappa"] == 0


def test_the_cost_is_the_stated_number_of_epochs_and_the_same_ones_every_time(dataset: Dataset) -> None:
    found = monitor(dataset, label_epochs=30, val_epochs=12, chunk=8)
    first, second = Encoder(strength), Encoder(strength)
    figures = found(first)
    assert first.epochs == 30 + 12
    assert found(second) == figures
    assert all(torch.equal(a, b) for a, b in zip(first.seen, second.seen, strict=True))


def test_an_encoder_that_has_diverged_is_not_a_number_and_no_error(dataset: Dataset) -> None:
    figures = monitor(dataset)(Encoder(lambda signals: strength(signals) * math.nan))
    assert all(math.isnan(value) for value in figures.values())


def test_no_byte_of_a_test_subject_is_read(dataset: Dataset, tmp_path: Path) -> None:
    """With every byte of the subjects of ``test`` and ``pretrain`` destroyed, the figures and the epochs seen are the same."""
    intact = Encoder(strength)
    expected = monitor(dataset)(intact)
    kept = {row.record for row in dataset.records if row.split in ("label", "val")}
    destroyed = 0
    for path in dataset.shard_paths:
        with tarfile.open(path) as tar:
            members = [(item.name, item.offset_data, item.size) for item in tar if item.isfile()]
        with path.open("r+b") as file:
            for name, offset, size in members:
                if not any(name.startswith(f"{record}_") for record in kept):
                    file.seek(offset)
                    file.write(b"\xff" * size)
                    destroyed += size
    assert destroyed > 1_000_000
    again = Encoder(strength)
    found = monitor(Dataset.open(dataset.path))
    assert found(again) == expected
    assert all(torch.equal(a, b) for a, b in zip(intact.seen, again.seen, strict=True))
    # What is destroyed would have been noticed.
    with pytest.raises(DatasetError, match=r"the manifest|no item fits split 'test'"):
        Monitor(Dataset.open(dataset.path), CHANNELS, MonitorConfig(), 7)._stream(dataset, "test", CHANNELS, 7)
