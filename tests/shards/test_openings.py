"""A build opens each file once where it plans and once where it converts; counted in all its processes and at an object store."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from made_edf import Made, noise, tal, write_edf

from shards.build_config import load_build_config
from shards.plan import Entry, ShardPlan
from shards.task import build_shard
from sleepfm.signals.discover import Discovered
from sleepfm.signals.record_names import name_records
from sleepfm.signals.recording import opened_recording, read_edf_header

# What every process of a build runs first: its openings and listings of what lies in one folder, a line each.
_HOOK = """
import os, sys
folder, log = os.environ["COUNTED_FOLDER"], os.environ["COUNTED_LOG"]
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and arguments and str(arguments[0]).startswith(folder):
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.getpid()} {event} {os.path.basename(str(arguments[0]))}\\n".encode())
        os.close(file)
sys.addaudithook(hook)
"""
RECORDINGS = {"SC4001E0-PSG.edf": "", "SC4002E0-PSG.edf": "EDF+C"}
HYPNOGRAMS = ("SC4001EC-Hypnogram.edf", "SC4002EC-Hypnogram.edf")


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Two nights of five minutes by the names of Sleep-EDF, an EDF and an EDF+, each scored in a file of annotations."""
    folder = tmp_path / "nights"
    folder.mkdir()
    for (name, variant), hypnogram in zip(RECORDINGS.items(), HYPNOGRAMS, strict=True):
        signals = [Made(label, noise(100 * 300, n), 100) for n, label in enumerate(["EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal"])]
        write_edf(folder / name, signals, variant=variant, stamps=[tal(f"+{n}") for n in range(300)] if variant else None)
        stages = tal("+0") + b"".join(tal(f"+{30 * n}", "30", "Sleep stage W") for n in range(10))
        write_edf(folder / hypnogram, [], variant="EDF+C", seconds="0", stamps=[stages])
    return folder


def build(start, source: object, out: Path) -> None:
    """A whole build on a cluster of its own, whose every recording is scored."""
    process = start(["build", source, out, "--workers", 1, "recordings_per_shard=2"], None)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, ""), stdout + stderr
    assert "no scoring" not in stdout


def test_driver_and_worker_open_each_recording_once_and_only_the_driver_searches(nights, tmp_path, start, monkeypatch):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_HOOK)
    log = tmp_path / "openings"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("COUNTED_FOLDER", str(nights))
    monkeypatch.setenv("COUNTED_LOG", str(log))

    def built() -> dict[str, Counter[str]]:
        build(start, nights, tmp_path / "out")
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for line in log.read_text().splitlines():
            process, event, name = line.split()
            seen[process][name if event == "open" else "listed"] += 1
        log.unlink()
        return seen

    files = dict.fromkeys([*RECORDINGS, *HYPNOGRAMS], 1)
    driver, worker = sorted(built().values(), key=lambda counts: -counts["listed"])
    # A scoring, which is small, once more for its SHA-256.
    hashed = files | dict.fromkeys(HYPNOGRAMS, 2)
    assert worker == hashed
    assert driver.pop("listed") and driver == files
    # A build that finds nothing to do looks whether a scoring has come or is another one, and asks nothing twice of a recording.
    (again,) = built().values()
    assert again.pop("listed") and again == hashed


def test_a_store_is_asked_for_each_header_in_two_requests_and_for_each_file_once_by_the_worker(nights, tmp_path, s3, start):
    url = s3.upload(nights, "opened-once")
    before = len(s3.requests())
    build(start, url, tmp_path / "out")
    asked = Counter(line.split("?")[0] for line in s3.requests()[before:])
    for name, variant in RECORDINGS.items():
        # The fixed part of the header, that of its signals, of an EDF+ the time stamps of its first and last record for how long
        # it is, and the one range of its records. The listing says how large it was when it was found, one question whether it
        # still is that.
        assert asked[f"GET /sleep/opened-once/{name}"] == 2 + 2 * bool(variant) + 1
        assert asked[f"HEAD /sleep/opened-once/{name}"] == 1
    for name in HYPNOGRAMS:
        # When it is listed, when it is read, and for its SHA-256, which the next build compares.
        assert asked[f"GET /sleep/opened-once/{name}"] == 2 + 1 + 1
        assert asked[f"HEAD /sleep/opened-once/{name}"] == 2
    # One search below the folder, by the driver.
    assert asked["GET /sleep"] == 3


def test_headers_in_a_store_are_read_by_the_tasks(cohort, built, s3, tmp_path, run, monkeypatch, digests):
    """The driver gets no byte of any recording; of these, which are small, it would otherwise look whether they are one."""
    from aiobotocore.client import AioBaseClient

    url = s3.upload(cohort, "headers-by-tasks")
    own: list[tuple[str, str]] = []
    ask = AioBaseClient._make_api_call

    async def noted(client, operation, parameters):
        own.append((operation, parameters.get("Key", "")))
        return await ask(client, operation, parameters)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", noted)
    monkeypatch.setattr("sleepfm.signals.discover._LARGEST_ANNOTATIONS", 0)
    arguments = ["build", url, tmp_path / "out", "--cohort", "shhs1", "recordings_per_shard=2"]
    before = len(s3.requests())
    result = run(arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    edfs = [f"headers-by-tasks/{path.relative_to(cohort).as_posix()}" for path in cohort.rglob("*.edf")]
    asked = Counter(line.split("?")[0] for line in s3.requests()[before:])
    # As above: two for the header and one for the records.
    assert [asked[f"GET /sleep/{key}"] for key in edfs] == 6 * [3]
    assert ("ListObjectsV2", "") in own and not [name for name in own if name[1].endswith(".edf")]
    assert digests(tmp_path / "out") == digests(built)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_that_grows_between_discovery_and_conversion_is_refused_by_name(nights, tmp_path, name):
    found = Discovered(read_edf_header(nights / name))
    entry = Entry(name, (nights / name).stat().st_size, name_records([name], set())[name])
    write_edf(nights / name, [Made("EEG Fpz-Cz", noise(100 * 400), 100)])
    shard = ShardPlan("shard-000000.tar", (entry,))
    (tmp_path / "out" / "shards").mkdir(parents=True)
    outcome = build_shard(nights, tmp_path / "out", shard, load_build_config(), "build", {name: found})
    (refusal,) = outcome.refusals
    assert (refusal.path, refusal.error) == (name, "RecordingError")
    assert f"{entry.size} bytes" in refusal.reason and "run the same command again" in refusal.reason


def test_a_recording_of_the_same_size_with_another_header_is_read_by_the_new_one(nights, tmp_path):
    name = "SC4001E0-PSG.edf"
    path = nights / name
    found = Discovered(read_edf_header(path))
    content = bytearray(path.read_bytes())
    # The patient's field, in which no sample's place changes, and a label after it.
    content[8:88] = b"somebody else".ljust(80)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with opened_recording(path, found.header) as recording:
        assert recording.patient == "somebody else"
