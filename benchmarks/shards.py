"""Recordings to shards: speed beside the released parser, memory of a worker, gain of a second one, and the lower bound.

    python benchmarks/shards.py [--reference CHECKOUT] [--nights N] [--hours H] [--turns N] [--only CASE,...] [--json F]

Synthesises nights shaped like SHHS (10 channels that are converted, 50 to 125 Hz) and measures, each in a process of its own
with one thread and warm (the first night does not count):

* `speed`: processor time of a task, a shard a night, everything included, and the bytes it writes, beside what they would
  be with every channel at 100 Hz; with --reference also that of the released
  `dataset/data_parser.py`, which parses 7 of the channels and saves Parquet, on the same files in the same call.
* `bound`: processor time of what no converter can do without: reading the bytes, decoding the samples that are wanted, and the
  forward and inverse transforms of resampling and filtering them in blocks, all to 100 Hz; nothing else.
* `memory`: peak resident memory of a real Ray worker, before and after a night of 10 hours.
* `workers`: wall time of a build on one and on two Ray workers that are warm, in turns, written to the temporary folder and,
  where there is one, to a file system in memory, which takes the disk out of it; and that of the same shards in one process and
  in two without Ray, each with its half: what the cores themselves give. Memory for the files is at hand
  (`memory_at_hand.py`), so that what the host of a virtual machine takes for each page is not measured.
* `store`: wall time of a build into a bucket of a local S3 server (moto, a process of its own) beside one into a folder, shard
  for shard in turns on one Ray worker that is warm, so that what else the machine does meets both: how long the worker is at it,
  and then the driver, which has the server put the parts together; the worker's processor time, and the requests that the server
  counts (with any renewal of the lease meanwhile).
* `command`: wall time of the whole command, `python -m shards build --workers 1`, of 32 nights in four shards, into a bucket of
  that server and into a folder, in turns: what a user waits for, with Ray's start, the plan, and the description at the end.
* `scale`: memory of the driver and of the object store during a real build of many recordings of 30 s with whole headers,
  seconds per thousand.
* `listing`: seconds and peak memory of listing many objects of that server, as a build lists its source. They are empty and have
  the names of recordings. More than 10,000 are listed page by page; of fewer the client keeps what it was told. Most of the
  seconds are the server's, which goes through all names for each page.

CHECKOUT is github.com/dlcjfgmlnasa/SynthSleepNet, with polars importable (PYTHONPATH).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from conversion import edfs, measure_bound, measure_ours, measure_reference, output, shard_of
from machine import describe
from memory_at_hand import memory_at_hand

# This file bears the name of the package: where it lies must not hide it, here, in Ray's workers and in processes without Ray.
sys.path.append(sys.path[0])
sys.path[0] = str(Path(__file__).resolve().parents[1])
# The local S3 server.
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
MEMORY_HOURS = 10
SHARD_RECORDINGS = 8  # as configs/shards.yaml has them
WORKER_SHARDS = 4
STORE_SHARDS = 4
COMMAND_NIGHTS = 32
COMMAND_TURNS = 3
SIZING_CORES = 64
PUTTING_THREADS = 8
MEMORY_FOLDER = Path("/dev/shm")
MIB = 2**20


def synthesise(folder: Path, nights: int, hours: float) -> Path:
    """A cohort of that many nights below ``folder``, kept for the next call."""
    place = folder / f"{nights}x{hours:g}h"
    command = [sys.executable, "-m", "sleepfm.cli", "synth", str(place), "--seed", "1", "--clean"]
    subprocess.run([*command, "--subjects", str(nights), "--hours", f"{hours:g}"], check=True, capture_output=True)
    return place


def resident_mib(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` (the peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def watched_task(*arguments: Any) -> tuple[float, float]:
    from shards.cluster import run_task

    before = resident_mib("VmRSS")
    outcome = run_task(*arguments)
    assert outcome.converted == 1, outcome.refusals
    return before, resident_mib("VmHWM")


def measure_memory(source: Path, *_: str) -> dict[str, Any]:
    from shards.build_config import load_build_config
    from shards.cluster import cluster
    from shards.memory import task_memory, wanted_labels
    from sleepfm.signals.cohorts.catalogue import load_cohort
    from sleepfm.signals.recording import read_edf_extent

    config, path = load_build_config(None, ["cohort=shhs1"]), edfs(source)[0]
    with output() as out, cluster(1) as ray:
        remote = ray.remote(num_cpus=1)(watched_task)
        arguments = (source, out, shard_of(source, [path], 0), config, "benchmark", {})
        found = [ray.get(remote.remote(*arguments)) for _ in range(3)]
    return {
        "idle_worker_mib": found[0][0],
        "peak_worker_mib": max(peak for _, peak in found),
        "asked_of_ray_mib": task_memory([read_edf_extent(path)], wanted_labels(load_cohort("shhs1"))) / MIB,
    }


def measure_workers(source: Path, turns: str, place: str = "", *_: str) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ("ray_1", "ray_2", "alone_1", "alone_2")}
    for _turn in range(int(turns)):
        for count in (1, 2):
            seconds[f"ray_{count}"].append(seconds_on_ray(source, place, count))
            seconds[f"alone_{count}"].append(seconds_alone(source, place, count))
    gains = {
        way: [one / two for one, two in zip(seconds[f"{way}_1"], seconds[f"{way}_2"], strict=True)] for way in ("ray", "alone")
    }
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "nights": WORKER_SHARDS * SHARD_RECORDINGS,
        "shards": WORKER_SHARDS,
        "turns": int(turns),
        "seconds_with_1": middle["ray_1"],
        "seconds_with_2": middle["ray_2"],
        "gain": statistics.median(gains["ray"]),
        "gain_least": min(gains["ray"]),
        "gain_most": max(gains["ray"]),
        "seconds_alone_with_1": middle["alone_1"],
        "seconds_alone_with_2": middle["alone_2"],
        "gain_alone": statistics.median(gains["alone"]),
        "gain_alone_least": min(gains["alone"]),
        "gain_alone_most": max(gains["alone"]),
    }


def numbered_shards(source: Path, first: int, count: int) -> list[Any]:
    """Alike in the work they take, so that none that comes last is waited for longer than another."""
    paths = edfs(source)
    return [shard_of(source, paths, first + number, SHARD_RECORDINGS) for number in range(count)]


def seconds_on_ray(source: Path, place: str, workers: int) -> float:
    from shards.build_config import load_build_config
    from shards.cluster import cluster, run_shards

    config = load_build_config(None, ["cohort=shhs1"])
    with output(place or None) as out, cluster(workers) as ray:

        def build(first: int, count: int) -> float:
            begin = time.perf_counter()
            run_shards(ray, numbered_shards(source, first, count), source, out, config, "benchmark", lambda news: None)
            return time.perf_counter() - begin

        build(0, workers)  # warms the workers
        with memory_at_hand():
            return build(100, WORKER_SHARDS)


def seconds_alone(source: Path, place: str, processes: int) -> float:
    """The same shards in processes that share nothing and are divided beforehand: what these cores give without Ray."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool, output(place or None) as out:

        def all_of(first: int, count: int) -> float:
            begin = time.perf_counter()
            parts = [pool.submit(convert_alone, source, out, first + 1_000 * n, count // processes) for n in range(processes)]
            for part in parts:
                part.result()
            return time.perf_counter() - begin

        all_of(0, processes)
        with memory_at_hand():
            return all_of(100, WORKER_SHARDS)


def convert_alone(source: Path, out: Path, first: int, count: int) -> None:
    from shards.build_config import load_build_config
    from shards.cluster import run_task

    config = load_build_config(None, ["cohort=shhs1"])
    for shard in numbered_shards(source, first, count):
        outcome = run_task(source, out, shard, config, "benchmark", {})
        assert outcome.converted == SHARD_RECORDINGS, outcome.refusals


def timed_task(*arguments: Any) -> tuple[float, float, Any]:
    from shards.cluster import run_task

    wall, processor = time.perf_counter(), time.process_time()
    outcome = run_task(*arguments)
    assert outcome.converted == SHARD_RECORDINGS, outcome.refusals
    return time.perf_counter() - wall, time.process_time() - processor, outcome.left


def measure_store(source: Path, *_: str) -> dict[str, Any]:
    from object_store import BUCKET, object_store

    from shards.build_config import load_build_config
    from shards.cluster import cluster
    from shards.lease import only_builder
    from shards.task_folder import complete
    from sleepfm.signals.files import location

    config, paths = load_build_config(None, ["cohort=shhs1"]), edfs(source)
    seconds: dict[str, list[tuple[float, float]]] = {"folder": [], "url": []}
    asked: list[int] = []
    completing: list[float] = []
    with object_store() as store, output() as folder, cluster(1) as ray:
        remote = ray.remote(num_cpus=1)(timed_task)
        for number in range(STORE_SHARDS + 1):
            for name, out in (("folder", folder), ("url", location(f"s3://{BUCKET}/out"))):
                shard = shard_of(source, [paths[number % len(paths)]], number, SHARD_RECORDINGS)
                with only_builder(out, config.store.lease_s, print) as (builder, _):
                    before = len(store.requests())
                    task = remote.remote(source, out, shard, config, "benchmark", {}, {}, {}, builder, {}, True)
                    wall, processor, left = ray.get(task)
                    seconds[name].append((wall, processor))
                    if left is not None:
                        begin = time.perf_counter()
                        assert complete(out, left, builder.checks())
                        completing.append(time.perf_counter() - begin)
                        asked.append(len(store.requests()) - before)
    # The first of each finds a cold worker.
    here, there = ([statistics.median(column) for column in zip(*seconds[name][1:], strict=True)] for name in ("folder", "url"))
    return {
        "shards": STORE_SHARDS,
        "recordings_in_each": SHARD_RECORDINGS,
        "seconds_into_a_folder": here[0],
        "seconds_into_a_url": there[0],
        "times_the_folder": there[0] / here[0],
        "seconds_of_the_driver": statistics.median(completing),
        "processor_seconds_into_a_folder": here[1],
        "processor_seconds_into_a_url": there[1],
        "times_the_processor_time": there[1] / here[1],
        "requests_of_a_shard": statistics.median(asked),
    }


def measure_command(source: Path, *_: str) -> dict[str, Any]:
    """Whole builds in turns; the fastest of each count."""
    from object_store import BUCKET, object_store

    seconds: dict[str, list[float]] = {"folder": [], "url": []}
    with object_store() as store, output() as folder:
        for turn in range(COMMAND_TURNS):
            for name, out in (("folder", str(folder / f"{turn}")), ("url", f"s3://{BUCKET}/{turn}")):
                command = [sys.executable, "-m", "shards", "build", str(source), out, "--workers", "1", "cohort=shhs1"]
                begin = time.perf_counter()
                done = subprocess.run(command, env=os.environ | store.environment, capture_output=True, text=True, check=False)
                seconds[name].append(time.perf_counter() - begin)
                assert not done.returncode, done.stderr
    here, there = min(seconds["folder"]), min(seconds["url"])
    return {
        "nights": COMMAND_NIGHTS,
        "seconds_into_a_folder": here,
        "seconds_into_a_url": there,
        "times_the_folder": there / here,
        "times_the_folder_in_median": statistics.median(b / a for a, b in zip(seconds["folder"], seconds["url"], strict=True)),
    }


def measure_scale(source: Path, recordings: str, *_: str) -> dict[str, Any]:
    """A real build of recordings of 30 s that have a night's header, and of which one channel is stored."""
    from shards.build import build
    from shards.build_config import load_build_config
    from shards.cluster import cluster

    count, config = int(recordings), load_build_config(None, ["cohort=shhs1"])
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, cluster(os.cpu_count() or 1) as ray:
        many, out = Path(folder) / "source", Path(folder) / "out"
        many.mkdir()
        write = tiny(edfs(source)[0].read_bytes())
        for number in range(count):
            write(many / f"shhs1-{number:06d}.edf", number)
        whole = ray.cluster_resources()["object_store_memory"]
        most, stop, seen = [0.0, 0.0], threading.Event(), list[float]()
        before = resident_mib("VmRSS")

        def sample() -> None:
            while not stop.wait(1.0):
                seen.append(resident_mib("VmRSS"))
                most[0] = max(most[0], seen[-1])
                most[1] = max(most[1], whole - ray.available_resources().get("object_store_memory", whole))

        watcher = threading.Thread(target=sample, daemon=True)
        watcher.start()
        begin = time.perf_counter()
        with Path(os.devnull).open("w") as null:
            sys.stdout, kept = null, sys.stdout
            try:
                result = build(many, out, config, os.cpu_count() or 1)
            finally:
                sys.stdout = kept
        seconds = time.perf_counter() - begin
        stop.set()
        watcher.join()
    assert result.description["counts"]["records"] == count, result.quarantine[:1]
    return {
        "recordings": count,
        "seconds": seconds,
        "seconds_per_thousand": 1000 * seconds / count,
        # At each tenth of the time: planning, tasks, manifest.
        **{f"driver_mib_at_{tenth}0_percent": seen[len(seen) * tenth // 10] for tenth in range(1, 10)},
        "driver_before_mib": before,
        "driver_peak_mib": most[0],
        "driver_bytes_per_recording": (most[0] - before) * MIB / count,
        "object_store_peak_mib": most[1] / MIB,
    }


def measure_listing(_source: Path, objects: str, *_: str) -> dict[str, Any]:
    from object_store import BUCKET, object_store

    from sleepfm.signals.files import location
    from sleepfm.signals.listing import list_names

    count, told = int(objects), list[int]()
    with object_store() as store:
        store.put("few/shhs1-000000.edf", b"")
        list_names(location(f"s3://{BUCKET}/few"), (".edf",))  # the client and its session are there now
        # By another process: what this one had put and forgotten would be room for what it lists.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(put_empty, store.endpoint, f"/{BUCKET}/many/edfs/shhs1", count).result()
        asked = len(store.requests())
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before, begin = resident_mib("VmRSS"), time.perf_counter()
        names = list_names(location(f"s3://{BUCKET}/many"), (".edf",), progress=told.append)
        seconds, peak, after = time.perf_counter() - begin, resident_mib("VmHWM"), resident_mib("VmRSS")
        asked = len(store.requests()) - asked
    assert len(names) == count and told[-1] == count
    return {
        "objects": count,
        "seconds": seconds,
        "seconds_per_thousand": 1000 * seconds / count,
        "requests": asked,
        "times_progress_was_told": len(told),
        "before_mib": before,
        "peak_growth_mib": peak - before,
        "peak_bytes_per_object": (peak - before) * MIB / count,
        "growth_at_the_end_mib": after - before,
    }


def put_empty(endpoint: str, folder: str, count: int) -> None:
    """So many empty objects below ``folder``, by as many threads as keep the server busy."""
    place, local = endpoint.removeprefix("http://"), threading.local()

    def put(number: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection(place)
        local.connection.request("PUT", f"{folder}/shhs1-{number:06d}.edf", b"")
        answer = local.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    with ThreadPoolExecutor(PUTTING_THREADS) as pool:
        for _ in pool.map(put, range(count)):
            pass


def tiny(edf: bytes) -> Callable[[Path, int], None]:
    """What writes recording ``number`` of 30 s to a path: the header of ``edf`` with all its signals, and one record.

    The disk must hold a hundred thousand of them: only the `EEG` has samples, and the other signals are holes in the file, which
    takes 16 kB of 42. The samples are of another half minute of the night from file to file, and the number is in the patient's
    field, so that no two files are the same.
    """
    signals = int(edf[252:256])
    begin, columns, place = 256 * (1 + signals), [], 256
    for width in (16, 80, 8, 8, 8, 8, 8, 80, 8, 32):
        columns.append([edf[place + n * width : place + (n + 1) * width] for n in range(signals)])
        place += signals * width
    chosen = next(n for n, label in enumerate(columns[0]) if label.strip() == b"EEG")
    samples = [int(text) for text in columns[8]]
    before, step, width = 2 * sum(samples[:chosen]), 2 * sum(samples), 2 * samples[chosen]
    records = round(30 / float(edf[244:252]))
    columns[8] = [b"%-8d" % (records * count) for count in samples]
    described = b"".join(field for column in columns for field in column)
    halves = (len(edf) - begin) // step // records

    def write(path: Path, number: int) -> None:
        first = begin + number % halves * records * step + before
        with path.open("wb") as file:
            file.write(edf[:8] + b"%-80d" % number + edf[88:236] + b"%-8d%-8d" % (1, 30) + edf[252:256] + described)
            file.seek(records * before, os.SEEK_CUR)
            file.write(b"".join(edf[first + turn * step : first + turn * step + width] for turn in range(records)))
            file.truncate(begin + records * step)

    return write


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": measure_ours,
    "reference": measure_reference,
    "bound": measure_bound,
    "memory": measure_memory,
    "workers": measure_workers,
    "store": measure_store,
    "command": measure_command,
    "scale": measure_scale,
    "listing": measure_listing,
}
CASES = ("speed", "bound", "memory", "workers", "store", "command", "scale", "listing")


def apart(measure: str, source: Path, *arguments: str) -> dict[str, Any]:
    """``MEASURES[measure]`` in a process of its own."""
    command = [sys.executable, __file__, "--one", measure, str(source), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, check=False)
    if done.returncode:
        raise SystemExit(f"{measure}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{measure:<10}" + "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return found


def sizing(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What cohorts of nights like these take on 64 cores, from the build with two workers and the bytes written."""
    build = figures.get("workers_in_memory", figures["workers"])
    a_night = 2 * build["seconds_with_2"] / build["nights"]
    size = figures["ours"]["bytes_per_psg_hour"] * figures["hours"]
    return {
        name: {
            "nights": nights,
            "core_seconds_per_night": a_night,
            "minutes_on_64_cores": nights * a_night / SIZING_CORES / 60,
            "gigabytes": nights * size / 1e9,
            "gigabytes_at_100_hz": nights * figures["ours"]["bytes_per_psg_hour_at_100_hz"] * figures["hours"] / 1e9,
            "gigabytes_read": nights * figures["ours"]["source_bytes_per_psg_hour"] * figures["hours"] / 1e9,
        }
        for name, nights in {"shhs": 8_444, "hundred_thousand": 100_000}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="", metavar="CHECKOUT")
    parser.add_argument("--nights", type=int, default=4)
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--turns", type=int, default=3, help="of one worker and two, in the case `workers`")
    parser.add_argument("--recordings", type=int, default=2_000, help="in the case `scale`")
    parser.add_argument("--objects", type=int, default=20_000, help="in the case `listing`")
    parser.add_argument("--scratch", type=Path, help="folder for the nights, kept for the next call")
    parser.add_argument("--only", default=",".join(CASES), metavar="CASE,...")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures there; cases measured before stay")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure, source, *rest = arguments.one
        print(json.dumps(MEASURES[measure](Path(source).resolve(), *rest)))
        return
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(CASES):
        parser.error(f"unknown cases {sorted(unknown)}; known: {', '.join(CASES)}")
    figures: dict[str, Any] = {"nights": arguments.nights, "hours": arguments.hours}
    if arguments.json and arguments.json.exists():
        figures = json.loads(arguments.json.read_text()) | figures
    with tempfile.TemporaryDirectory(prefix="nights-") as temporary:
        scratch = arguments.scratch or Path(temporary)
        nights = synthesise(scratch, arguments.nights, arguments.hours)
        if "speed" in chosen:
            figures["ours"] = apart("ours", nights)
            if arguments.reference:
                figures["reference"] = apart("reference", nights, arguments.reference)
                ratio = figures["ours"]["psg_hours_per_core_second"] / figures["reference"]["psg_hours_per_core_second"]
                figures["times_the_reference"] = ratio
                print(f"{ratio:.2f} times the reference's PSG-hours per core-second")
        if "bound" in chosen:
            bound = figures["bound"] = apart("bound", nights)
            if "ours" in figures:
                least = bound["reading_seconds"] + bound["transform_seconds"]
                figures["times_the_bound"] = figures["ours"]["processor_seconds_per_night"] / least
                print(f"{figures['times_the_bound']:.2f} times the lower bound of {least:.3f} s a night")
        if "memory" in chosen:
            long = synthesise(scratch, 1, MEMORY_HOURS)
            figures["memory"] = apart("memory", long) | {"hours": MEMORY_HOURS}
        if "workers" in chosen:
            figures["workers"] = apart("workers", nights, str(arguments.turns))
            if MEMORY_FOLDER.is_dir():
                figures["workers_in_memory"] = apart("workers", nights, str(arguments.turns), str(MEMORY_FOLDER))
        if "store" in chosen:
            figures["store"] = apart("store", nights)
        if "command" in chosen:
            figures["command"] = apart("command", synthesise(scratch, COMMAND_NIGHTS, arguments.hours))
        if "scale" in chosen:
            figures["scale"] = apart("scale", nights, str(arguments.recordings))
        if "listing" in chosen:
            figures["listing"] = apart("listing", nights, str(arguments.objects))
    if {"ours", "workers"} <= figures.keys():
        figures["sizing"] = sizing(figures)
        for name, values in figures["sizing"].items():
            print(f"{name:<14}" + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if arguments.json:
        figures["machine"] = describe()
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
