"""Folders that nobody tidied or that somebody arranged: nothing is written outside the output, nothing is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sleepfm.data.dataset import Dataset

NAMES = (
    "a/night.edf",
    "b/night.edf",
    "b/NIGHT.EDF",
    "B/Night.edf",
    "x..edf",
    "-rf ; $(touch x).edf",
    "line\nbreak\x1b[2J.edf",
    "CON.edf",
    "n" * 240 + ".edf",
    "night.edf/night.edf",
    "ünï cödé.edf",
)


@pytest.fixture
def folder(cohort, tmp_path) -> Path:
    """Every name a copy of one short night; beside them links that lead out, nowhere or in circles, a pipe and a device."""
    night = min(cohort.rglob("*.edf"))
    source = tmp_path / "source"
    for name in NAMES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(night, source / name)
    shutil.copy(night, os.fsencode(source) + b"/caf\xe9.edf")
    shutil.copy(night, tmp_path / "elsewhere.edf")
    for name, target in {
        "outside.edf": "../elsewhere.edf",
        "gone.edf": "nowhere/night.edf",
        "loop.edf": "loop.edf",
        "up": "..",
        "device.edf": "/dev/zero",
    }.items():
        (source / name).symlink_to(target)
    os.mkfifo(source / "pipe.edf")
    return source


def snapshot(root: Path, leave_out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place) / name
            if leave_out != path and leave_out not in path.parents:
                status = path.lstat()
                found[str(path)] = (status.st_size, status.st_mtime_ns if name in files else 0)
    return found


def test_every_name_is_taken_and_nothing_is_written_elsewhere(folder, tmp_path, run, digests):
    out = tmp_path / "out"
    before = snapshot(tmp_path, out)
    arguments = ["build", folder, out, "--cohort", "shhs1", "recordings=4"]
    result = run(arguments)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert snapshot(tmp_path, out) == before
    refused = {row["source"]: row for row in pq.read_table(out / "manifest/quarantine.parquet").to_pylist()}
    assert refused.keys() == {"gone.edf", "loop.edf", "pipe.edf", "device.edf"}
    records = Dataset.open(out).records
    assert {row.source for row in records} == {
        *(name.replace("\n", "\\n").replace("\x1b", "\\x1b") for name in NAMES),
        "caf\\xe9.edf",
        "outside.edf",
    }
    keys = [row.record for row in records]
    assert len({key.casefold() for key in keys}) == len(keys)
    assert all(path.parent == out / "shards" for path in out.rglob("*.tar"))
    assert "whole" in run(["verify", out]).stdout
    assert "caf\\xe9.edf" not in run(["info", out]).stderr

    built = digests(out)
    assert run(arguments).returncode == 1
    assert digests(out) == built

    exported = tmp_path / "exported"
    assert run(["export", out, exported]).returncode == 0
    assert sorted(path.name for path in exported.iterdir()) == sorted(keys)
    after = {path: status for path, status in snapshot(tmp_path, out).items() if not path.startswith(str(exported))}
    assert after == before


def test_another_order_of_folders_moves_nobody(cohort, tmp_path, run):
    """The visits of a person stay together, and whoever is added or comes first changes nobody's split."""
    edf, other = sorted(cohort.rglob("*.edf"))[:2]
    splits = []
    for number, places in enumerate(
        (["z/shhs1-200001", "y/shhs2-200001"], ["1/shhs2-200001", "2/shhs1-200002", "3/shhs1-200001"])
    ):
        source = tmp_path / f"source{number}"
        for name in places:
            (source / name).parent.mkdir(parents=True)
            shutil.copy(other if "200002" in name else edf, (source / name).with_suffix(".edf"))
        assert run(["build", source, tmp_path / f"out{number}", "--cohort", "shhs1"]).returncode == 0
        rows = Dataset.open(tmp_path / f"out{number}").records
        splits.append({row.record: (row.subject, row.split) for row in rows})
    first, second = splits
    assert first["shhs1-200001"] == first["shhs2-200001"]
    assert first.items() <= second.items() and len(second) == 3
