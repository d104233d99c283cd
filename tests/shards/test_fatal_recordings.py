"""Recordings that end the process that converts them: each is refused by its name, and all others are converted as ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

HOSTILE = Path(__file__).with_name("fatal_recordings.py")
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(tmp_path: Path, shards_environment) -> Build:
    """A build with a cluster of its own, whose workers meet with what names of files say."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(HOSTILE, site / "sitecustomize.py")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(source: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
        line: Sequence[object] = [
            *(
                sys.executable,
                "-m",
                "shards",
                "build",
                source,
                out,
                "--cohort",
                "shhs1",
                "--workers",
                2,
                "recordings_per_shard=3",
            ),
            *more,
        ]
        variables = shards_environment(None) | {"FATAL_ONCE": str(tmp_path / "once"), "PYTHONPATH": path}
        return subprocess.run([str(word) for word in line], env=variables, capture_output=True, text=True, timeout=600)

    return run


def nights(cohort: Path, folder: Path, *names: str) -> Path:
    """Copies of the cohort's first nights under these names, without their scorings."""
    folder.mkdir()
    for edf, name in zip(sorted(cohort.rglob("*.edf")), names, strict=False):
        shutil.copy(edf, folder / name)
    return folder


def refusals(out: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(out / "manifest" / "quarantine.parquet").to_pylist()
    return {row["source"]: (row["error"], row["reason"]) for row in rows}


def test_each_is_refused_and_the_others_of_its_shard_are_converted(cohort, build, tmp_path, run, digests):
    names = ["shhs1-1.edf", "shhs1-2-segfault.edf", "shhs1-3-bug.edf", "shhs1-4.edf", "shhs1-5-memory.edf", "shhs1-6-full.edf"]
    source, out = nights(cohort, tmp_path / "source", *names), tmp_path / "out"
    done = build(source, out, "ray.retries=2")
    assert done.returncode == 1 and "error" not in done.stderr, done.stdout + done.stderr
    found = refusals(out)
    assert {name: error for name, (error, _) in found.items()} == {
        "shhs1-2-segfault.edf": "FatalRecordingError",
        "shhs1-3-bug.edf": "InternalError",
        "shhs1-5-memory.edf": "FatalRecordingError",
        "shhs1-6-full.edf": "FatalRecordingError",
    }
    assert "2 of 2 attempts: ended by SIGSEGV in " in found["shhs1-2-segfault.edf"][1]
    assert "ended by SIGKILL, as the system does where memory runs out" in found["shhs1-5-memory.edf"][1]
    assert "memory ran out" in found["shhs1-6-full.edf"][1]
    assert "ZeroDivisionError: division by zero at the second line (" in found["shhs1-3-bug.edf"][1]
    assert "1 recording met a fault of this program" in done.stdout
    assert "whole" in run(["verify", out]).stdout
    # What is kept has the samples that it has without the others beside it.
    alone = tmp_path / "alone"
    assert run(["build", nights(cohort, tmp_path / "good", *names[:1]), alone, "--cohort", "shhs1"]).returncode == 0
    assert members(alone / "shards" / "shard-000000.tar") == members(out / "shards" / "shard-000000.tar")
    # The next build has nothing to do, and says the same.
    before = digests(out)
    again = build(source, out)
    assert again.returncode == 1 and "starting Ray" not in again.stdout
    assert digests(out) == before


def members(tar: Path) -> list[tuple[str, bytes]]:
    import tarfile

    with tarfile.open(tar) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


@pytest.mark.slow
def test_one_that_hangs_is_refused_and_one_that_died_by_chance_is_not(cohort, build, tmp_path, run, digests):
    names = ["shhs1-1-hang.edf", "shhs1-2.edf", "shhs1-3.edf", "shhs1-4-once.edf", "shhs1-5.edf", "shhs1-6.edf"]
    source, out = nights(cohort, tmp_path / "source", *names), tmp_path / "out"
    done = build(source, out, "ray.retries=2", "ray.task_timeout_s=15")
    assert done.returncode == 1, done.stdout + done.stderr
    ((name, (error, reason)),) = refusals(out).items()
    assert (name, error) == ("shhs1-1-hang.edf", "FatalRecordingError")
    assert "2 of 2 attempts: not done within ray.task_timeout_s=15 in sitecustomize.py, line " in reason
    assert (tmp_path / "once").exists()
    undisturbed = tmp_path / "undisturbed"
    assert run(["build", source, undisturbed, "--cohort", "shhs1", "recordings_per_shard=3"]).returncode == 0
    name = "shards/shard-000001.tar"
    assert digests(out)[name] == digests(undisturbed)[name]


@pytest.mark.slow
def test_what_ray_ends_for_want_of_memory_is_refused(cohort, build, tmp_path, monkeypatch):
    """A node that always counts as full, as one does beside a recording that fills it."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    # Often enough for the one that hangs; the others are done between two looks, or else at a second try.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "5000")
    source, out = nights(cohort, tmp_path / "source", "shhs1-1.edf", "shhs1-2-hang.edf"), tmp_path / "out"
    done = build(source, out, "ray.retries=2")
    assert done.returncode == 1 and (out / "manifest/quarantine.parquet").is_file(), done.stdout + done.stderr
    error, reason = refusals(out)["shhs1-2-hang.edf"]
    assert error == "FatalRecordingError" and "its worker was ended, since its node's memory ran out" in reason
