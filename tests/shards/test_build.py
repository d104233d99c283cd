"""Builds as users run them: on Ray, interrupted, continued, with faults, and with the same bytes every time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from made_edf import write_another_night

from sleepfm.data.dataset import Dataset
from sleepfm.data.stream import EpochStream


def test_what_is_built_is_whole_and_readable(built, run):
    assert "whole" in run(["verify", built]).stdout
    dataset = Dataset.open(built)
    assert [row.record for row in dataset.records] == [f"shhs1-{200_001 + n}" for n in range(6)]
    assert {row.subject for row in dataset.records} == {f"shhs-{200_001 + n}" for n in range(6)}
    assert {row.n_epochs for row in dataset.records} == {24}
    assert all(len(row.channels) == 10 and row.has_events for row in dataset.records)
    batch = EpochStream(dataset, dataset.records[0].split, ["EEG_C3", "EEG_C4"]).batch(0, 16)
    assert 0.5 < batch.signals.std() < 5
    text = run(["info", built]).stdout
    assert dataset.digest in text and "EMG_CHIN" in text


def refused_lines(output: str) -> list[str]:
    """What is said of each refused recording; a summary follows."""
    return [line.removeprefix("refused ") for line in output.splitlines() if line.startswith("refused ")]


def test_faulty_recordings_are_refused_with_reasons_and_the_rest_goes_on(faulty_cohort, tmp_path, run, digests):
    out = tmp_path / "out"
    arguments = ["build", faulty_cohort, out, "--cohort", "shhs1", "recordings_per_shard=3"]
    result = run(arguments)
    assert result.returncode == 1, result.stderr
    rows = {Path(row["source"]).name: row for row in pq.read_table(out / "manifest/quarantine.parquet").to_pylist()}
    assert {name: row["error"] for name, row in rows.items()} == {
        "notes.edf": "RecordingError",
        "shhs1-200002.edf": "RecordingError",
    }
    for row in rows.values():
        assert str(faulty_cohort) not in row["reason"]
        assert refused_lines(result.stdout).count(f"{row['source']}: {row['reason']}") == 1
    assert "Traceback" not in result.stdout + result.stderr
    kept = [row.record for row in Dataset.open(out).records]
    assert kept == ["shhs1-200001", "shhs1-200003", "shhs1-200004", "shhs1-200005", "shhs1-200006"]

    before = digests(out)
    again = run(arguments)
    assert again.returncode == 1
    assert refused_lines(again.stdout) == refused_lines(result.stdout)
    assert digests(out) == before

    # The recording that was cut short is fetched again, the scoring too: its shard is built again.
    truncated = faulty_cohort / "polysomnography/edfs/shhs1/shhs1-200002.edf"
    source = next(path for path in _cohort_files(faulty_cohort) if path.name == "shhs1-200001.edf")
    write_another_night(source, truncated, 1)
    scoring = faulty_cohort / "polysomnography/annotations-events-nsrr/shhs1"
    for number in (2, 3):
        shutil.copy(scoring / "shhs1-200001-nsrr.xml", scoring / f"shhs1-20000{number}-nsrr.xml")
    repaired = run([*arguments, "--retry-refused"])
    assert repaired.returncode == 1
    assert [row["source"] for row in pq.read_table(out / "manifest/quarantine.parquet").to_pylist()] == [
        "polysomnography/edfs/shhs1/notes.edf"
    ]
    assert "whole" in run(["verify", out]).stdout
    after = digests(out)
    changed = {name for name, value in before.items() if name.startswith("shards/") and after[name] != value}
    assert changed == {"shards/shard-000001.tar", "shards/shard-000001.json"}


def _cohort_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.edf"))


def test_adding_recordings_adds_shards_and_leaves_the_old_ones_alone(cohort, built, tmp_path, run, digests):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(cohort, source)
    late = next(path for path in _cohort_files(source) if path.name == "shhs1-200003.edf")
    hidden = late.rename(tmp_path / late.name)
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    assert run(arguments).returncode == 0
    before, splits = digests(out), {row.record: row.split for row in Dataset.open(out).records}
    hidden.rename(late)
    assert run(arguments).returncode == 0
    after = digests(out)
    assert {name: value for name, value in before.items() if name.startswith("shards/")}.items() <= after.items()
    assert before["dataset.json"] != after["dataset.json"]
    grown = {row.record: row.split for row in Dataset.open(out).records}
    assert splits.items() <= grown.items()
    assert grown == {row.record: row.split for row in Dataset.open(built).records}

    late.write_bytes(late.read_bytes() + b"\0" * 100)
    changed = run(arguments)
    assert changed.returncode == 1 and "has changed since it was converted" in changed.stderr
    assert digests(out) == after


def test_the_same_command_runs_as_a_ray_job(cohort, built, ray_cluster, tmp_path, request, shards_environment, digests):
    out = tmp_path / "out"
    result = subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")),
            *("job", "submit", "--address", ray_cluster.dashboard, "--working-dir", "."),
            *(
                "--",
                sys.executable,
                "-m",
                "shards",
                "build",
                str(cohort),
                str(out),
                "--cohort",
                "shhs1",
                "recordings_per_shard=2",
            ),
        ],
        cwd=request.config.rootpath,
        env=shards_environment(None),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(out) == digests(built)


def test_wrong_input_is_one_line_and_writes_nothing(cohort, built, tmp_path, run, digests):
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    before = digests(built)
    cases = [
        (["build", empty, out], 1, "no recording in this folder"),
        (["build", tmp_path / "nowhere", out], 1, "no such"),
        (["build", cohort, out, "segment_epoch=3"], 2, "did you mean 'segment_epochs'"),
        (["build", cohort, out, "--cohort", "shsh1"], 2, "shhs1"),
        (["build", cohort, cohort / "out"], 2, "must lie outside"),
        (
            ["build", cohort, built, "--cohort", "shhs1", "recordings_per_shard=3"],
            2,
            "recordings_per_shard=2, this one has recordings_per_shard=3",
        ),
        (["build", cohort, tmp_path], 1, "not a build of shards"),
        (["verify", empty], 1, "not a data set"),
        (["info", tmp_path / "nowhere"], 1, "not a data set"),
    ]
    for arguments, status, message in cases:
        result = run(arguments)
        assert (result.returncode, result.stdout) == (status, ""), result.stdout
        assert message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not out.exists()
    assert digests(built) == before
