"""Readers that know nothing of this project, WebDataset and wids, on shards and on the export of an epoch a sample."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from made_nights import make_dataset, make_night

from shards.__main__ import main
from shards.verify import verify
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import INDEX_FILE, LABELS
from sleepfm.data.in_order import iter_record

CHANNELS = ("EEG_C4", "AIRFLOW", "SPO2")
BAND = {"AIRFLOW": {"band": [0.05, 1.0]}, "SPO2": {"band": [None, None]}, "EEG_C4": {"band": [0.5, 40.0]}}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    nights = [make_night("Night_A", 7, CHANNELS), make_night("b", 4, CHANNELS[:2]), make_night("c", 5, ("ECG",))]
    for night in nights:
        night.provenance["channels"] = {name: BAND.get(name, {"band": [3.0, 30.0]}) for name in night.channels}
    # Two epochs of `c` have no usable channel.
    nights[2].quality["ECG"][:] = [0, 1, 0, 1, 0]
    return make_dataset(tmp_path / "out", nights, overrides=["segment_epochs=3"])


def test_the_example_of_the_manual_runs(dataset: Dataset, request: pytest.FixtureRequest, capsys) -> None:
    page = (request.config.rootpath / "docs" / "reading.md").read_text()
    example = re.search(r"## With WebDataset alone\n.*?```python\n(.*?)```", page, re.DOTALL)
    assert example is not None and len(example[1].strip().splitlines()) <= 10
    code = example[1].replace("runs/demo/shards/shards", str(dataset.path / "shards")).replace("000007}", "000001}")
    exec(compile(code, "docs/reading.md", "exec"), {})  # the manual's own lines
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Night_A from epoch 1: torch.Size([3, 3000]) torch.float32 [3, 300]"
    # The recording without EEG is passed by.
    assert len(printed) == 3 + 2


def test_decoded_members_are_arrays_of_their_own_type_and_shape(dataset: Dataset) -> None:
    urls = [str(path) for path in dataset.shard_paths]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    keys = ["Night_A_0000", "Night_A_0001", "Night_A_0002", "b_0000", "b_0001", "c_0000", "c_0001"]
    assert [sample["__key__"] for sample in samples] == keys
    for sample in samples:
        header = sample["json"]
        epochs, channels = header["epochs"], header["channels"]
        arrays = {name: value for name, value in sample.items() if name.endswith(".npy")}
        assert set(arrays) == {f"{name.lower()}.npy" for name in (*channels, *LABELS, "quality", "crc")}
        for channel in channels:
            values = sample[f"{channel.lower()}.npy"]
            assert values.dtype == np.int16 and values.shape == (epochs, 30 * header["rate"][channel])
        for label in LABELS:
            assert sample[f"{label}.npy"].dtype == np.int8 and sample[f"{label}.npy"].shape == (epochs,)
        assert sample["quality.npy"].dtype == np.uint8 and sample["quality.npy"].shape == (len(channels), epochs)
        assert sample["crc.npy"].dtype == np.uint32 and sample["crc.npy"].shape == (len(channels), epochs)


def shards_of(path: Path) -> list[tuple[str, int]]:
    """What an index lists, in the terms that wids documents."""
    index = json.loads(path.read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["wids_version"] == 1
    return [(str(path.parent / shard["url"]), shard["nsamples"]) for shard in index["shardlist"]]


def test_the_index_counts_the_samples_of_each_tar(dataset: Dataset, tmp_path: Path) -> None:
    assert main(["export", str(dataset.path), str(tmp_path / "epochs"), "--format", "webdataset-epochs"]) == 0
    indices = [dataset.path / INDEX_FILE, *sorted((tmp_path / "epochs").glob(f"*/{INDEX_FILE}"))]
    assert len(indices) > 1
    for index in indices:
        for url, count in shards_of(index):
            assert len(list(wds.WebDataset(url, shardshuffle=False))) == count > 0


def test_wids_reads_any_sample_by_its_number(dataset: Dataset, tmp_path: Path) -> None:
    wids = pytest.importorskip("wids", reason="pip install wids")
    before = {path: path.read_bytes() for path in dataset.shard_paths}
    found = wids.ShardListDataset(str(dataset.path / INDEX_FILE), cache_dir=str(tmp_path / "cache"), keep=True)
    assert len(found) == dataset.description["counts"]["segments"]
    last = found[4]
    assert last["__key__"] == "b_0001" and last[".eeg_c4.npy"].shape == (1, 3000) and last[".json"]["first_epoch"] == 4
    assert {path: path.read_bytes() for path in dataset.shard_paths} == before


def test_a_damaged_index_is_found_and_mended_by_the_next_build(dataset: Dataset) -> None:
    from shards.manifest import write_manifest
    from shards.plan import read_plan

    index = dataset.path / INDEX_FILE
    whole = index.read_bytes()
    for change in (lambda: index.write_bytes(whole.replace(b"nsamples", b"nsample_", 1)), index.unlink):
        change()
        assert [fault.split(":")[0] for fault in verify(dataset.path)] == [str(index)]
        write_manifest(dataset.path, read_plan(dataset.path, dataset.config))
        assert index.read_bytes() == whole and list(verify(dataset.path)) == []


def test_an_epoch_a_sample_holds_what_the_streams_give(dataset: Dataset, tmp_path: Path, capsys) -> None:
    target = tmp_path / "epochs"
    assert main(["export", str(dataset.path), str(target), "--format", "webdataset-epochs"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == set(dataset.names)
    splits = {row.record: row.split for row in dataset.records}
    seen: dict[str, list[int]] = {name: [] for name in dataset.names}
    for folder in sorted(target.iterdir()):
        for sample in wds.WebDataset([str(tar) for tar in sorted(folder.glob("*.tar"))], shardshuffle=False).decode():
            header = sample["json"]
            record, epoch = header["record"], header["epoch"]
            assert splits[record] == folder.name and sample["__key__"] == f"{record}_{epoch:05d}"
            seen[record].append(epoch)
            batch = next(iter_record(dataset, record, header["channels"], windows=100, labels=LABELS))
            for number, channel in enumerate(header["channels"]):
                values = sample[f"{channel.lower()}.npy"]
                assert values.dtype == np.float32 and batch.present[epoch - 1, 0, number]
                assert torch.equal(torch.from_numpy(values), batch.signals[epoch - 1, 0, number])
            for label in LABELS:
                assert sample[f"{label}.cls"] == int(batch.labels[label][epoch - 1, 0])
    assert seen["c"] == [1, 3, 5]
    usable = {row.record: [n + 1 for n in range(row.n_epochs) if _usable(dataset, row.record, n)] for row in dataset.records}
    assert seen == usable
    # The same export again replaces it; anything else is left alone.
    assert main(["export", str(dataset.path), str(target), "--format", "webdataset-epochs"]) == 0
    (target / "test" if (target / "test").exists() else next(target.iterdir())).joinpath("notes.txt").write_text("mine")
    assert main(["export", str(dataset.path), str(target), "--format", "webdataset-epochs"]) == 1
    assert main(["export", str(dataset.path), str(tmp_path / "x"), "--format", "webdataset-epochs", "--rule", "overlap"]) == 2


def _usable(dataset: Dataset, record: str, epoch: int) -> bool:
    row = dataset.records[dataset.index_of(record)]
    batch = next(iter_record(dataset, record, row.channels, windows=100, labels=()))
    return bool(batch.present[epoch].any())


def test_a_worker_writes_without_webdataset_and_torch() -> None:
    """With them it takes 180 MB more and 2 s longer to start."""
    code = "import sys, shards.task; print([name for name in ('webdataset', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
