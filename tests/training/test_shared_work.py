"""Long phases are work for all ranks: shares, equal figures on any number of processes, and errors that all of them hear."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from launching import environment
from made_nights import make_dataset, make_night
from ports import free_port

from sleepfm.data.dataset import Dataset
from sleepfm.errors import ShardError
from sleepfm.inference import embed
from sleepfm.registry.registry import load_package
from sleepfm.stages.embedding_cache import EmbeddingCache
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.shared_work import SharedWork, share_of

pytestmark = pytest.mark.timeout(1200)
Job = Callable[[int, str], dict[str, tuple[list[dict[str, Any]], Path]]]
JOB, CACHE_JOB = (Path(__file__).with_name(name) for name in ("shared_stages.py", "shared_cache.py"))
KINDS = ("unimodal", "multimodal", "context", "probe", "fine-tune", "events")
# Which count of rows is the work that a validation shares; the probe's embeddings are there.
VALIDATES = {
    "unimodal": "NeuroNet.encode",
    "multimodal": "SynthSleepNet.encode",
    "context": "MaskedContext.forward",
    "probe": "Downstream.classify",
    "fine-tune": "SynthSleepNet.encode",
    "events": "SynthSleepNet.encode_frames",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Nights of 10 to 25 epochs, which no number of ranks divides evenly."""
    torch.set_num_threads(1)
    nights = [make_night(f"night{number}", 10 + 5 * (number % 4), seed=number) for number in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


def launched(
    folder: Path, size: int, local_size: int, script: Path, *arguments: object, fails: bool = False
) -> list[subprocess.CompletedProcess[str]]:
    """Every rank of ``script`` on ``size`` processes, ``local_size`` a node, to its end."""
    port = str(free_port())
    jobs = []
    for rank in range(size):
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % local_size, "LOCAL_SIZE": local_size}
        variables = environment() | {name: str(value) for name, value in place.items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        line = [sys.executable, str(script), str(folder), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        jobs.append(subprocess.Popen(line, env=variables, **pipes))  # type: ignore[call-overload]
    done = []
    for job in jobs:
        out, err = job.communicate(timeout=600)
        done.append(subprocess.CompletedProcess(job.args, job.returncode, out, err))
    assert fails or all(job.returncode == 0 for job in done), "\n".join(job.stderr for job in done)
    return done


@pytest.fixture(scope="module")
def job(dataset: Dataset, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What every rank said, by stage, and the folder of rank 0's run of each; once for a number of processes and a type."""
    root = tmp_path_factory.mktemp("shared")

    @cache
    def found(size: int, dtype: str) -> dict[str, tuple[list[dict[str, Any]], Path]]:
        folder = root / f"{size}-{dtype}"
        folder.mkdir()
        launched(folder, size, size, JOB, dataset.path, packages, dtype, *KINDS)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]
        return {kind: ([rank[kind] for rank in ranks], folder / str(n) / "node0" / "run") for n, kind in enumerate(KINDS)}

    return found


SIZES = pytest.mark.parametrize("size", [pytest.param(size, marks=pytest.mark.slow) for size in (2, 3)])


@SIZES
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_one_process(job: Job, kind: str, size: int) -> None:
    ((one,), alone), (ranks, together) = job(1, "fp32")[kind], job(size, "fp32")[kind]
    assert one["figures"]
    # Bit for bit: the batches have the same shapes.
    assert all(_same(rank["figures"], one["figures"]) for rank in ranks)
    assert _same(ranks[0]["metrics"], one["metrics"]) and ranks[0]["files"] == one["files"]
    assert bool(one["files"]) == (kind in ("probe", "fine-tune", "events"))
    for file in (name for name in one["files"] if name.endswith(".parquet")):
        pd.testing.assert_frame_equal(*(pd.read_parquet(run / file) for run in (alone, together)), check_exact=True)


@SIZES
@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_does_its_share(job: Job, kind: str, size: int) -> None:
    ((one,), _), (ranks, _) = job(1, "fp32")[kind], job(size, "fp32")[kind]
    # The splits of a phase are divided one by one, and what is divided is nights of 25 epochs at the most, 16 epochs (which is
    # what the monitor embeds at once), or 8 sequences.
    validates = {"unimodal": (2, 16), "multimodal": (2, 16), "context": (1, 8)}.get(kind, (1, 25))
    phases = [("validated", VALIDATES[kind], *validates)]
    if kind in ("context", "probe"):
        phases.append(("built", "SynthSleepNet.encode", 2, 25))
    if kind == "probe":
        # It applies its head to `val` again; `test` is embedded for it.
        phases += [("exported", "Downstream.classify", 2, 25), ("exported", "SynthSleepNet.encode", 1, 25)]
    elif kind in ("fine-tune", "events"):
        phases.append(("exported", VALIDATES[kind], 1, 25))
    for phase, name, splits, item in phases:
        total, did = one[phase][name], [rank[phase].get(name, 0) for rank in ranks]
        assert sum(did) == total > 0, "something was left out, or done twice"
        assert max(did) <= total / size + splits * item
        assert sum(count > 0 for count in did) > 1 or total <= item
        # Of one night alone nothing could be seen of who evaluates what is exported.
        assert phase != "exported" or total > item
    assert all(rank["told"] for rank in ranks), "nothing was said of how far it had come"


@pytest.mark.slow
def test_a_run_in_bf16_validates_in_bf16(job: Job) -> None:
    ((exact,), _), ((rounded,), _) = job(1, "fp32")["context"], job(1, "bf16")["context"]
    ((name, value),) = exact["figures"].items()
    # A loss shows the rounding, and no more than it.
    assert rounded["figures"][name] != value and rounded["figures"][name] == pytest.approx(value, rel=0.02)
    # A rounding more or less in a batch of the same shape there is not either.
    assert all(_same(rank["figures"], rounded["figures"]) for rank in job(3, "bf16")["context"][0])


def _same(left: dict[str, float], right: dict[str, float]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k], equal_nan=True) for k in left)


class Reads:
    """Stands for what reads the chunks of a recording: reads them, and notes how far it is ahead of who consumes them.

    With ``fails`` it raises that instead of giving the first chunk of the second recording.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> None:
        self._read, self._fails = embed.stored_epochs, fails
        self.read: list[str] = []
        self.consumed = 0
        self.ahead: list[int] = []
        monkeypatch.setattr(embed, "stored_epochs", self._chunks)

    def _chunks(self, dataset: Dataset, record: str, channels: Sequence[str], chunk: int) -> Iterator[embed.Epochs]:
        for epochs in self._read(dataset, record, channels, chunk):
            if self._fails is not None and self.read and self.read[-1] != record:
                raise self._fails
            self.read.append(record)
            self.ahead.append(len(self.read) - self.consumed)
            yield epochs

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.read) < count:
            assert time.monotonic() < deadline, f"only {self.read} were read"
            time.sleep(0.01)


def test_the_next_recording_is_read_while_one_is_consumed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataset.select("pretrain").tolist()[:4]
    chunks = [-(-int(dataset.n_epochs[row]) // 5) for row in rows]
    reads = Reads(monkeypatch)
    heard: list[int] = []
    given = []
    for row, epochs in embed.recordings_ahead(dataset, rows, ["EEG_C4"], 5, lambda: heard.append(1)):
        for number, (signals, _) in enumerate(epochs):
            reads.consumed += 1
            if reads.consumed == 1:
                # Long enough to read all of them, if nothing bounded that.
                time.sleep(0.3)
            if number == chunks[len(given)] - 1 and row != rows[-1]:
                # Nobody has asked for the next recording yet.
                reads.wait_for(reads.consumed + 1)
                assert dataset.names[rows[len(given) + 1]] in reads.read
            assert len(signals) <= 5
        given.append(row)
    assert given == rows and len(heard) == len(reads.read) == sum(chunks)
    # Those that wait, the one for which there is no place yet, and the one that is asked for next.
    assert 1 < max(reads.ahead) <= embed.CHUNKS_AHEAD + 2 < sum(chunks)


def test_an_error_of_what_reads_ahead_comes_as_it_is_where_it_would_have_come(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dataset.select("pretrain").tolist()[:3]
    Reads(monkeypatch, fails=ShardError("epoch 0 is corrupt"))
    threads, given = threading.active_count(), []
    with pytest.raises(ShardError, match="epoch 0 is corrupt"):
        for row, epochs in embed.recordings_ahead(dataset, rows, ["EEG_C4"], 5):
            given.append((row, sum(len(signals) for signals, _ in epochs)))
    # What came before it was given first, and the thread is gone.
    assert given[0] == (rows[0], int(dataset.n_epochs[rows[0]])) and len(given) == 1
    assert threading.active_count() == threads


def test_nodes_that_share_nothing_get_the_same_bytes(dataset: Dataset, packages: Path, tmp_path: Path) -> None:
    """Of three nights: both nodes have the first, with other bytes; the second alone has the second; none has the third."""
    package = load_package(packages / "synthsleepnet")
    rows = dataset.select("pretrain", package.module.channels).tolist()
    names = [dataset.names[row] for row in rows]
    assert len(names) > 3
    caches = [
        EmbeddingCache(tmp_path / f"node{node}", dataset, package.module, package.config["weights"]["sha256"])
        for node in range(2)
    ]
    alone = EmbeddingCache(tmp_path / "alone", dataset, package.module, package.config["weights"]["sha256"]).split("pretrain")
    # As other processors may round.
    caches[0]._store(names[0], alone[names[0]].clone())
    caches[1]._store(names[0], alone[names[0]] * 1.001)
    caches[1]._store(names[1], alone[names[1]] * 1.001)
    launched(tmp_path, 2, 1, CACHE_JOB, dataset.path, packages / "synthsleepnet")
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    wanted = alone | {names[1]: alone[names[1]] * 1.001}
    for node in caches:
        assert {path.stem for path in node.folder.iterdir()} == set(names)
        assert all(torch.equal(node.get(name), wanted[name]) for name in names)
    # What a node had was not computed again, the rest once.
    assert sum(rank["encoded"] for rank in told) == sum(int(dataset.n_epochs[row]) for row in rows[2:])
    assert all(rank["encoded"] for rank in told)


def test_an_error_of_one_rank_is_heard_by_all(dataset: Dataset, packages: Path, tmp_path: Path) -> None:
    """The last recording is damaged, which only the last rank reads."""
    copy = tmp_path / "set"
    shutil.copytree(dataset.path, copy)
    row = int(dataset.select("pretrain")[-1])
    shard = copy / "shards" / dataset.shard_paths[int(dataset.shard_of[row])].name
    with tarfile.open(shard) as tar:
        members = [item for item in tar if item.isfile() and item.name.startswith(f"{dataset.names[row]}_")]
    with shard.open("r+b") as file:
        for item in members:
            file.seek(item.offset_data)
            file.write(b"\xff" * item.size)
    launched(tmp_path, 2, 2, CACHE_JOB, copy, packages / "synthsleepnet")
    first, last = (json.loads((tmp_path / f"rank{rank}.json").read_text())["error"] for rank in range(2))
    assert first.startswith("TrainingError: host ") and last.startswith("ShardError: host ")
    assert "(rank 1): " in first and dataset.names[row] in first and first.partition(": ")[2] == last.partition(": ")[2]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("costs", [[], [5], [1, 1], [10, 15, 20, 25, 10], [1] * 20, [0, 3, 0, 0], [100, 1, 1, 1, 1]])
def test_shares_are_runs_of_items_that_miss_none(costs: list[int], size: int) -> None:
    shares = [share_of(costs, rank, size) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(len(costs)))
    heaviest = max(sum(costs[item] for item in share) for share in shares)
    assert heaviest <= sum(costs) / size + max(costs, default=0)


def test_one_process_alone_needs_no_group() -> None:
    work = SharedWork(World(0, 1, 0, 1))
    found = work.each("items", [1, 1], lambda share: ((torch.tensor(item),) for item in share))
    assert [int(value) for (value,) in found] == [0, 1]
    assert work.on_main(lambda: {"a": 1}) == {"a": 1} and work.only_on_main(lambda: "b") == "b"
