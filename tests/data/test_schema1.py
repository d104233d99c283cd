"""Data sets of the first schema, which earlier versions have written, are read as they were."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import torch

from shards.info import info
from shards.verify import verify
from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.in_order import iter_eval
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events
from sleepfm.data.stream import EpochStream, Reading, SequenceStream

# Three nights, as the last version before the second schema wrote them.
WRITTEN = Path(__file__).parent / "schema1" / "schema1.tar.xz"
# What that version read from them.
READ = json.loads((WRITTEN.parent / "read.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "schema1"


def digest(batch: Batch) -> str:
    """SHA-256 of all that a batch holds."""
    hashed = hashlib.sha256()
    for tensor in (batch.signals, batch.present, batch.valid, *batch.labels.values(), batch.item, batch.first_epoch):
        hashed.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        hashed.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    hashed.update(json.dumps(batch.record).encode())
    return hashed.hexdigest()


def read(folder: Path) -> dict[str, str]:
    """What the streams give, by a name for each of them."""
    dataset = Dataset.open(folder)
    reading = Reading(seed=3)
    channels = ["EEG_C4", "AIRFLOW", "SPO2", "ECG"]
    pooled = EpochStream(dataset, "pretrain", channels, reading)
    tasks = ("stage", "apnea", "hypopnea")
    windows = SequenceStream(dataset, "pretrain", channels, length=4, stride=2, reading=reading, labels=tasks)
    found = {
        "digest": dataset.digest,
        "pooled": digest(pooled.batch(5, 40)),
        "windows": digest(windows.batch(2, 9)),
        "events": hashlib.sha256(repr(scored_events(dataset, ShardReader(dataset), 0)).encode()).hexdigest(),
    }
    evaluated = iter_eval(dataset, "test", ["EEG_C4", "ECG"], length=3, labels=tasks)
    return found | {f"evaluated {number}": digest(batch) for number, batch in enumerate(evaluated)}


def test_batches_are_byte_for_byte_what_they_were(folder: Path) -> None:
    assert read(folder) == READ


def test_a_whole_data_set_is_found_whole_and_a_flipped_bit_is_found(folder: Path) -> None:
    assert list(verify(folder)) == []
    tar = folder / "shards" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 3] ^= 1
    tar.write_bytes(content)
    assert any("SHA-256" in fault for fault in verify(folder))


def test_its_rates_are_told(folder: Path) -> None:
    rates = {words[0]: words[1] for line in info(folder).splitlines() if len(words := line.split()) == 5}
    assert (rates["AIRFLOW"], rates["SPO2"], rates["THORAX"]) == ("100", "100", "-")
