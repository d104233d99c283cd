"""One night converted in this process: processor time here, of the released parser, and of what no converter can do without.

`benchmarks/shards.py` measures with it, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def edfs(source: Path) -> list[Path]:
    return sorted(source.rglob("*.edf"))


def shard_of(source: Path, paths: Sequence[Path], number: int, recordings: int = 1) -> Any:
    """A shard of so many recordings: ``paths``, again from the first where they are fewer."""
    from shards.plan import Entry, ShardPlan

    def entry(turn: int) -> Any:
        path = paths[turn % len(paths)]
        return Entry(path.relative_to(source).as_posix(), path.stat().st_size, f"{path.stem}-{turn}" if turn else path.stem)

    return ShardPlan(f"shard-{number:06d}.tar", tuple(entry(turn) for turn in range(recordings)))


@contextmanager
def output(place: str | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shards-", dir=place) as folder:
        (Path(folder) / "shards").mkdir()
        yield Path(folder)


def processor_seconds(work: Callable[[Path], Any], paths: list[Path]) -> list[float]:
    """Processor time of ``work`` on each path, the first as often as it takes to be warm: once more."""
    seconds = []
    for path in [paths[0], *paths]:
        begin = time.process_time()
        work(path)
        seconds.append(time.process_time() - begin)
    return seconds[1:]


def measure_ours(source: Path, *_: str) -> dict[str, Any]:
    from shards.build_config import load_build_config
    from shards.cluster import run_task

    config, hours, size = load_build_config(None, ["cohort=shhs1"]), [], []
    with output() as out:

        def work(path: Path) -> None:
            shard = shard_of(source, [path], 0)
            outcome = run_task(source, out, shard, config, "benchmark", {})
            assert outcome.converted == 1, outcome.refusals
            hours.append(outcome.hours)
            size.append((out / "shards" / shard.name).stat().st_size)

        seconds = processor_seconds(work, edfs(source))
        saved = spared(next((out / "shards").glob("*.tar")))  # of the last night, in the place of those before
    return {
        "processor_seconds_per_night": statistics.median(seconds),
        "psg_hours_per_core_second": sum(hours[1:]) / sum(seconds),
        "bytes_per_psg_hour": sum(size) / sum(hours),
        "bytes_per_psg_hour_at_100_hz": (size[-1] + saved) / hours[-1],
        "source_bytes_per_psg_hour": sum(path.stat().st_size for path in edfs(source)) / sum(hours[1:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def spared(tar: Path) -> int:
    """Bytes that the channels of a tar would take beyond those they take, were all of them at 100 Hz."""
    import tarfile

    found = 0
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                header = json.load(archive.extractfile(member))  # type: ignore[arg-type]
                found += sum(2 * 30 * (100 - rate) * header["epochs"] for rate in header["rate"].values())
    return found


def measure_reference(source: Path, checkout: str, *_: str) -> dict[str, Any]:
    """The released parser and saver; it takes relative paths alone and swallows no error here."""
    sys.path.insert(0, str(Path(checkout).resolve()))
    os.chdir(source)
    from dataset.data_parser import SHHS  # type: ignore[import-not-found]

    parser, hours = SHHS(), []
    with tempfile.TemporaryDirectory(prefix="reference-") as folder:

        def work(path: Path) -> None:
            import pyarrow.parquet as pq

            target = Path(folder) / path.stem
            parser.save(path.relative_to(source).as_posix(), str(target))
            x, y = (pq.read_metadata(Path(folder) / path.stem.split("-")[-1] / f"{name}.parquet") for name in "xy")
            assert x.num_columns == 7 and x.num_rows == y.num_rows * 3000 > 0, (x, y)
            hours.append(y.num_rows / 120)

        seconds = processor_seconds(work, edfs(source))
    return {
        "processor_seconds_per_night": statistics.median(seconds),
        "psg_hours_per_core_second": sum(hours[1:]) / sum(seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_bound(source: Path, *_: str) -> dict[str, Any]:
    import numpy as np
    from scipy import fft

    from sleepfm.signals.cohorts.catalogue import load_cohort
    from sleepfm.signals.cohorts.montage import resolve
    from sleepfm.signals.recording import read_edf_header, read_recording

    cohort, block = load_cohort("shhs1"), 16_384
    reading, transforms = [], []
    for path in [edfs(source)[0], *edfs(source)]:
        header, montage = read_edf_header(path), resolve(read_recording(path), cohort)
        begin = time.process_time()
        raw = np.frombuffer(path.read_bytes(), np.uint8, offset=header.data_offset)
        records = raw[: header.n_records * header.record_bytes].reshape(header.n_records, header.record_bytes)
        signals = {}
        for channel, derivation in montage.channels.items():
            signal = header.ordinary[derivation.active.index]
            part = records[:, signal.offset : signal.offset + 2 * signal.samples]
            signals[channel] = np.ascontiguousarray(part).view("<i2").ravel().astype(np.float32), derivation.rate
        middle = time.process_time()
        for samples, rate in signals.values():
            if rate < 10:
                continue  # oximetry is held, not filtered
            length = round(block * rate / 100) if rate < 100 else block
            padded = np.resize(samples, -(-len(samples) // length) * length).reshape(-1, length)
            target = round(length * 100 / rate)
            spectrum = fft.rfft(padded, axis=1)
            kept = min(spectrum.shape[1], target // 2 + 1)
            fft.irfft(spectrum[:, :kept], target, axis=1)
        reading.append(middle - begin)
        transforms.append(time.process_time() - middle)
    return {"reading_seconds": statistics.median(reading[1:]), "transform_seconds": statistics.median(transforms[1:])}
