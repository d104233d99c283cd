"""Folders that nobody tidied or that somebody arranged: nothing is written outside the output, nothing is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_edf import write_another_night

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
    """Every name a short night; beside them links that lead out, nowhere or in circles, a pipe and a device."""
    night = min(cohort.rglob("*.edf"))
    source = tmp_path / "source"
    for number, name in enumerate(NAMES, start=1):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_another_night(night, source / name, number)
    shutil.copy(night, os.fsencode(source) + b"/caf\xe9.edf")
    write_another_night(night, tmp_path / "elsewhere.edf", len(NAMES) + 1)
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
    arguments = ["build", folder, out, "--cohort", "shhs1", "recordings_per_shard=4"]
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


def test_a_folder_that_cannot_be_listed_and_a_link_cost_themselves(cohort, tmp_path, run, monkeypatch):
    """A path too long for the system stands for a folder without permission, which a superuser does not meet."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    first, second = sorted(cohort.rglob("*.edf"))[:2]
    for path in (first, second):
        shutil.copy(path, source / path.name)
    (source / "another.edf").symlink_to(first.name)
    monkeypatch.chdir(source)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    monkeypatch.chdir(tmp_path)
    result = run(["build", source, out, "--cohort", "shhs1"])
    assert result.returncode == 1, result.stderr
    assert "warning: ddd" in result.stdout and "cannot be listed (File name too long); what is in it is not in" in result.stdout
    rows = Dataset.open(out).records
    assert {row.source for row in rows} == {first.name, second.name}
    (refused,) = pq.read_table(out / "manifest/quarantine.parquet").to_pylist()
    assert refused["source"] == "another.edf"
    assert refused["reason"].startswith(f"is the same file as {first.name}, through a link; it would count as a second recording")
    # It is all that is amiss, and told as long as it is.
    (source / "another.edf").unlink()
    again = run(["build", source, tmp_path / "clean", "--cohort", "shhs1"])
    assert again.returncode == 1 and "refused" not in again.stdout.replace("refused 0", "") and "warning: ddd" in again.stdout
    private = run(["build", source, tmp_path / "private", "--cohort", "shhs1", "privacy.names=digest"])
    assert private.returncode == 1 and "ddd" not in private.stdout and ": cannot be listed" in private.stdout


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
            write_another_night(other if "200002" in name else edf, (source / name).with_suffix(".edf"), "shhs2" in name)
        assert run(["build", source, tmp_path / f"out{number}", "--cohort", "shhs1"]).returncode == 0
        rows = Dataset.open(tmp_path / f"out{number}").records
        splits.append({row.record: (row.subject, row.split) for row in rows})
    first, second = splits
    assert first["shhs1-200001"] == first["shhs2-200001"]
    assert first.items() <= second.items() and len(second) == 3
