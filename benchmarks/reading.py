"""Reading shards: epochs per second, memory, and what shuffling costs a disk, beside WebDataset and a Parquet file an epoch.

    python benchmarks/reading.py [--scratch DIR] [--large N] [--only CASE,...] [--build] [--json F]

Makes data sets of 10 and N (1,000) recordings of one hour and four channels in DIR (3 GB; kept for the next call) through the
writer that builds use. Every figure comes from a process of its own with one thread for torch, after a warm pass that does not
count, from the page cache unless the case says otherwise. An epoch is 30 s of one channel: float32, in a tensor of 256.

`epochs_per_processor_second` is what other work on the machine disturbs less; `machine_load` is the load average before.

* `ours`: the streams of `sleepfm.data`, shuffled, every epoch checked against its CRC.
* `webdataset`: the same tars through WebDataset's own pipeline, shuffled by shard and in a buffer of 1,000, nothing checked.
* `parquet`: one Parquet file an epoch, a column a channel (the layout of OSF), in random order.
* `memory`: resident memory after the same number of epochs from 10 and from N recordings.
* `disk`: epochs per second after the files were dropped from the page cache, with and without reading ahead.
* `store`: one channel of four from a data set of 100 recordings, one pass each: from the local S3 server (which takes processor
  time of this machine) into an empty cache, again from that cache, and from the folder, with the opening and whatever is waited
  for; the processor time is that of the reader alone. What was fetched, in units of the channel's bytes.
* `order`: shards touched by 10,000 consecutive items, of all.
* `step`: share of a training step (NeuroNet tiny) that waits for data which one thread reads ahead meanwhile.
* `beside`: a main thread launches operations as for a GPU (9,000 a step, forward and backward through a transformer too small for
  anything but the launching to count), then takes a batch of 256 items of four channels, which a thread or N processes read
  meanwhile: the time to launch a step, the wait for its batch, the share of the wait, and the processor time of a step in this
  process, which other work on the machine disturbs less. `beside, a batch alone` is a batch read with nothing beside, `beside,
  fixed` a step without a batch.
* `processes`: epochs per second from a thread or N processes, where nothing else is done; memory of a process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from noise_nights import CHANNELS, EPOCHS, make_dataset
from other_readers import make_parquet, parquet_batches, webdataset_batches

BATCH = 256
SIZES = (10, 1000)
STORED = 100
COUNTED = 40_000
WORKERS = (0, 1, 2, 4)
# Of 3,022 operations.
PASSES = 3


def epoch_stream(path: Path, channels: tuple[str, ...] = CHANNELS, **settings: Any) -> Any:
    from sleepfm.data.dataset import Dataset
    from sleepfm.data.stream import EpochStream, Reading

    return EpochStream(Dataset.open(path), "pretrain", channels, Reading(**settings))


def sequence_stream(path: Path, length: int, **settings: Any) -> Any:
    from sleepfm.data.dataset import Dataset
    from sleepfm.data.stream import Reading, SequenceStream

    return SequenceStream(Dataset.open(path), "pretrain", CHANNELS, length, reading=Reading(**settings), labels=("stage",))


def rate(batches: Iterator[int], part: float = 1.0, warm: bool = True) -> dict[str, float]:
    """Epochs per second over a ``part`` of the epochs asked for, after half as many; ``batches`` tells how many each held."""
    done, counted = 0, int(COUNTED * part)
    while warm and done < counted // 2:
        done += next(batches)
    begin, processor, done = time.perf_counter(), time.process_time(), 0
    while done < counted:
        done += next(batches)
    return {
        "epochs_per_second": done / (time.perf_counter() - begin),
        "epochs_per_processor_second": done / (time.process_time() - processor),
    }


def ours(stream: Any, items: int, epochs: int) -> Iterator[int]:
    start = 0
    while True:
        assert len(stream.batch(start, items)) == items
        start += items
        yield items * epochs


def resident() -> float:
    """MB of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def memory(path: Path) -> dict[str, float]:
    import torch

    torch.from_numpy(np.zeros(1)).clone()
    stream = epoch_stream(path)
    before = resident()
    start = 0
    while start < 60_000:
        stream.batch(start, BATCH)
        start += BATCH
    return {"megabytes": resident(), "megabytes_opened": before}


def forget(path: Path) -> None:
    """Drop a data set's shards from the page cache."""
    os.sync()
    for tar in (path / "shards").glob("*.tar"):
        handle = os.open(tar, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def disk(path: Path, **settings: Any) -> dict[str, float]:
    """From the disk: windows are left behind quickly enough that most of what is read is new."""
    forget(path)
    stream = epoch_stream(path, **settings)
    stream.batch(0, 1)
    if settings.get("read_ahead", True):
        time.sleep(0.5)  # the lead that a first step's compilation and warm-up give
    return rate(ours(stream, BATCH, 1), 1.5, warm=False)


def store(path: Path) -> dict[str, float]:
    """A pass over one channel from a store, from what it has left in the cache, and from the disk."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from object_store import object_store

    from sleepfm.data.cache import BlockCache
    from sleepfm.data.dataset import Dataset
    from sleepfm.data.stream import EpochStream, Reading

    def rates(source: str | Path, cache: BlockCache | None) -> tuple[float, float]:
        begin, processor = time.perf_counter(), time.process_time()
        stream = EpochStream(Dataset.open(source, cache), "pretrain", CHANNELS[:1], Reading())
        for start in range(0, len(stream), BATCH):
            stream.batch(start, min(BATCH, len(stream) - start))
        return len(stream) / (time.perf_counter() - begin), len(stream) / (time.process_time() - processor)

    with object_store() as server, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        url, cache = server.upload(path, "nights"), BlockCache(Path(scratch), 2**40)
        found = {"store": rates(url, cache), "cache": rates(url, cache), "disk": rates(path, None)}
        fetched = cache.used() / (STORED * EPOCHS * 6000)
    seconds = {f"epochs_per_second_{name}": rate for name, (rate, _) in found.items()}
    processor = {f"epochs_per_processor_second_{name}": rate for name, (_, rate) in found.items()}
    return seconds | processor | {"fetched_of_channel": fetched}


def order(path: Path) -> dict[str, float]:
    stream = epoch_stream(path)
    window = set()
    for begin in range(0, 10_000, 1000):
        window |= set(stream.batch(begin, 1000).record)
    shards = {int(stream.dataset.shard_of[stream.dataset.index_of(record)]) for record in window}
    return {"shards_touched": float(len(shards)), "shards": float(len(stream.dataset.shard_paths))}


def step(path: Path, threads: int, prefetched: bool) -> dict[str, float]:
    """Seconds of a training step of 64 epochs and the share of them spent waiting for the batch."""
    import torch

    from sleepfm.config import read_yaml
    from sleepfm.data.prefetch import Prefetcher
    from sleepfm.models.build import build_model

    torch.set_num_threads(threads)
    configs = Path(__file__).resolve().parents[1] / "configs" / "models"
    model: Any = build_model(read_yaml(configs / "neuronet-tiny.yaml")["model"])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    noise = torch.rand(64, *model.noise_shape)
    stream = epoch_stream(path)
    fixed = stream.batch(0, 64)
    seconds, waits = [], []
    with Prefetcher(stream, ((number * 64, 64) for number in range(10**9))) as batches:
        if not prefetched:
            batches.close()
        for _ in range(60):
            begin = time.perf_counter()
            batch = next(batches) if prefetched else fixed
            waits.append(time.perf_counter() - begin)
            model(batch.signals, noise).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds[10:]), "waiting_share": sum(waits[10:]) / sum(seconds[10:])}


def alone(path: Path) -> dict[str, float]:
    """Milliseconds of a batch of four channels, read by a thread that nothing is beside."""
    stream = sequence_stream(path, 1)
    taken = []
    for number in range(150):
        begin = time.perf_counter()
        stream.batch(number * BATCH, BATCH)
        taken.append(1000 * (time.perf_counter() - begin))
    return {"batch_milliseconds": statistics.median(taken[50:])}


def beside(path: Path, workers: int | None) -> dict[str, float]:
    """What a step that only launches waits for its batch."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(8, 1, 8, dropout=0.0, batch_first=True)
    model, value = nn.TransformerEncoder(layer, 24, enable_nested_tensor=False), torch.zeros(1, 2, 8)
    launched, waited, processor = [], [], 0.0
    with read_ahead(path, workers or 0) as batches:
        if workers is None:
            batches.close()
        for number in range(150):
            processor = time.process_time() if number == 50 else processor
            begin = time.perf_counter()
            for _ in range(PASSES):
                model(value).sum().backward()
            middle = time.perf_counter()
            if workers is not None:
                next(batches)
            launched.append(middle - begin)
            waited.append(time.perf_counter() - middle)
        processor = time.process_time() - processor
    launched, waited = launched[50:], waited[50:]
    return {
        "launch_milliseconds": 1000 * statistics.mean(launched),
        "wait_milliseconds": 1000 * statistics.mean(waited),
        "waiting_share": sum(waited) / (sum(launched) + sum(waited)),
        "processor_milliseconds": 1000 * processor / len(launched),
    }


def processes(path: Path, workers: int) -> dict[str, float]:
    import psutil

    with read_ahead(path, workers) as batches:
        found = rate(len(batch) * len(CHANNELS) for batch in batches)
        sizes = [child.memory_full_info().uss / 1e6 for child in psutil.Process().children()]
    return {"epochs_per_second": found["epochs_per_second"]} | ({"megabytes_a_process": max(sizes)} if sizes else {})


def read_ahead(path: Path, workers: int) -> Any:
    """Batches of four channels, without end."""
    from sleepfm.data.prefetch import Prefetcher

    return Prefetcher(sequence_stream(path, 1), ((number * BATCH, BATCH) for number in range(10**9)), workers=workers)


def cases(scratch: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Every figure, by its name."""
    small, large = (scratch / str(size) for size in SIZES)
    one = ("EEG_C4",)
    return {
        "ours, single channels (4 pooled)": lambda: rate(ours(epoch_stream(large), BATCH, 1)),
        "ours, single channel (1 of 4)": lambda: rate(ours(epoch_stream(large, one), BATCH, 1)),
        "ours, four channels at once": lambda: rate(ours(sequence_stream(large, 1), BATCH // 4, 4)),
        "ours, sequences of 20 x 4": lambda: rate(ours(sequence_stream(large, 20), 4, 80)),
        "webdataset, single channels (4 pooled)": lambda: rate(webdataset_batches(large, CHANNELS, BATCH)),
        "webdataset, single channel (1 of 4)": lambda: rate(webdataset_batches(large, one, BATCH), 0.25),
        "parquet, single channel": lambda: rate(parquet_batches(scratch / "parquet", one, BATCH), 0.1),
        "parquet, four channels at once": lambda: rate(parquet_batches(scratch / "parquet", CHANNELS, BATCH), 0.2),
        "memory, 10 recordings": lambda: memory(small),
        f"memory, {SIZES[1]} recordings": lambda: memory(large),
        "disk, reading ahead": lambda: disk(large),
        "disk, not reading ahead": lambda: disk(large, read_ahead=False),
        "store, one channel of four": lambda: store(scratch / str(STORED)),
        f"order, {SIZES[1]} recordings": lambda: order(large),
        "step, 1 thread, a batch at hand": lambda: step(large, 1, False),
        "step, 1 thread, read ahead": lambda: step(large, 1, True),
        "step, 2 threads, a batch at hand": lambda: step(large, 2, False),
        "step, 2 threads, read ahead": lambda: step(large, 2, True),
        "beside, a batch alone": lambda: alone(large),
        "beside, fixed": lambda: beside(large, None),
        **{f"beside, {readers(n)}": partial(beside, large, n) for n in WORKERS},
        **{f"processes, {readers(n)}": partial(processes, large, n) for n in WORKERS},
    }


def readers(workers: int) -> str:
    return f"{workers} processes" if workers else "a thread"


def write(path: Path, figures: dict[str, dict[str, float]]) -> None:
    """The figures so far; those that were measured earlier and not now stay."""
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    recipe = {"recordings": SIZES, "epochs": EPOCHS, "channels": CHANNELS, "batch": BATCH}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe(), "recipe": recipe, "figures": before | figures}, indent=1) + "\n")


def main() -> None:
    global COUNTED, SIZES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "sleepfm-reading", metavar="DIR")
    parser.add_argument("--large", type=int, default=SIZES[1], metavar="N", help="recordings of the larger set (%(default)s)")
    parser.add_argument("--only", default="", metavar="CASE,...", help="cases that begin so, such as ours,memory")
    parser.add_argument("--build", action="store_true", help="make the data and stop")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    parser.add_argument(
        "--counted", type=int, default=COUNTED, metavar="N", help="epochs that a rate is taken over (%(default)s)"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    COUNTED, SIZES = arguments.counted, (SIZES[0], arguments.large)
    scratch: Path = arguments.scratch
    if arguments.one:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(cases(scratch)[arguments.one]()))
        return
    for size in (*SIZES, STORED):
        if not (scratch / str(size) / "dataset.json").exists():
            print(f"making {size} recordings", flush=True)
            make_dataset(scratch / str(size), size)
    wanted = tuple(name for name in arguments.only.split(",") if name)
    if not (scratch / "parquet").exists() and (not wanted or any(name.startswith("parquet") for name in wanted)):
        make_parquet(scratch / "parquet", sequence_stream(scratch / str(SIZES[0]), 1))
    if arguments.build:
        return
    found: dict[str, dict[str, float]] = {}
    for name in cases(scratch):
        if wanted and not name.startswith(wanted):
            continue
        command = [
            sys.executable,
            __file__,
            "--scratch",
            str(scratch),
            "--counted",
            str(COUNTED),
            "--large",
            str(SIZES[1]),
            "--one",
            name,
        ]
        load = os.getloadavg()[0]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}:\n{done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1]) | {"machine_load": load}
        print(f"{name:<42}" + "  ".join(f"{key} {value:,.4g}" for key, value in found[name].items()), flush=True)
        if arguments.json:
            write(arguments.json, found)


if __name__ == "__main__":
    main()
