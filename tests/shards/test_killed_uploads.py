"""Drivers and workers that die while a tar goes to a bucket in parts: the same command finishes the job with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_uploads.py")
# Of a driver that was killed; the next one waits for as long.
LEASE_SECONDS = 4
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(cohort: Path, connection, shards_environment, s3, tmp_path: Path) -> Iterator[Build]:
    """A build of the cohort into a bucket that takes small parts, killed at a point."""

    def run(point: str, out: str) -> subprocess.CompletedProcess[str]:
        words = ["build", cohort, out, "--cohort", "shhs1", "recordings_per_shard=2", f"store.lease_s={LEASE_SECONDS}"]
        line = [sys.executable, SCRIPT, point, tmp_path / "mark", *words]
        variables = shards_environment(connection.address)
        return subprocess.run([str(word) for word in line], env=variables, capture_output=True, text=True, timeout=300)

    with s3.faults(least_part=1):
        yield run


def tars(names: list[str]) -> set[str]:
    return {name.removesuffix(".tar") for name in names if name.endswith(".tar")}


def sidecars(names: list[str]) -> set[str]:
    return {name.removesuffix(".json") for name in names if name.startswith("shards/") and name.endswith(".json")}


def in_parts(s3, name: str) -> int:
    """How many uploads in parts were begun below ``name``."""
    return len([line for line in s3.requests() if line.startswith("POST") and f"/{name}/shards/" in line and "?uploads" in line])


@pytest.mark.slow
@pytest.mark.parametrize("point", ["parts", "object", "checked"])
def test_a_driver_can_be_killed_at_every_step_of_the_end_of_an_upload(build, built, place, run, s3, point):
    name, out = f"killed-{point}", f"s3://sleep/killed-{point}"
    killed = build(point, out)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    before, names = place(out).digests(), place(out).names()
    # Nothing counts whose sidecar is not there, and no sidecar is there before its tar is whole.
    whole = place(built).digests()
    assert "dataset.json" not in names and "no dataset.json here" in run(["info", out]).stderr
    assert all(before[f"{shard}{end}"] == whole[f"{shard}{end}"] for shard in sidecars(names) for end in (".tar", ".json"))
    waiting = [key for key in s3.unfinished_uploads() if key.startswith(f"{name}/")]
    if point == "parts":
        assert waiting, "parts that are no object"
    else:
        assert tars(names) - sidecars(names), "an object that does not count"

    done = build("none", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert place(out).digests() == whole
    assert [key for key in s3.unfinished_uploads() if key.startswith(f"{name}/")] == []
    assert in_parts(s3, name) >= len(sidecars(place(out).names())), "all went in parts"


@pytest.mark.slow
def test_a_worker_can_be_killed_in_the_middle_of_parts(build, built, place, s3, tmp_path):
    out = "s3://sleep/killed-worker"
    done = build("worker", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mark").exists() and "its worker died" in done.stdout
    assert place(out).digests() == place(built).digests()
    # Of the worker's parts no object came; they stay until the same command runs again.
    shards = sidecars(place(out).names())
    assert in_parts(s3, "killed-worker") == len(shards) + 1
    assert build("none", out).returncode == 0
    assert place(out).digests() == place(built).digests()
    assert [key for key in s3.unfinished_uploads() if key.startswith("killed-worker/")] == []
