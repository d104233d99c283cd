"""Scorings that cannot be used, that are not asked for, and that come after the signals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_edf import write_another_night

from shards.task import _digest
from sleepfm.data.dataset import Dataset
from sleepfm.files import write_json

SCORINGS = "polysomnography/annotations-events-nsrr/shhs1"
EDFS = "polysomnography/edfs/shhs1"


@pytest.fixture
def source(cohort: Path, tmp_path: Path) -> Path:
    """Three nights, the second with half of its scoring, the third without one."""
    folder = tmp_path / "source"
    shutil.copytree(cohort, folder)
    for number in (4, 5, 6):
        (folder / EDFS / f"shhs1-20000{number}.edf").unlink()
    half = folder / SCORINGS / "shhs1-200002-nsrr.xml"
    half.write_text(half.read_text()[: half.stat().st_size // 2])
    (folder / SCORINGS / "shhs1-200003-nsrr.xml").unlink()
    return folder


def sidecar(out: Path, number: int) -> dict:
    return json.loads((out / "shards" / f"shard-00000{number}.json").read_text())


def records(out: Path) -> dict[str, dict]:
    rows = pq.read_table(out / "manifest/records.parquet").to_pylist()
    return {row["record"].removeprefix("shhs1-"): row | {"provenance": json.loads(row["provenance"])} for row in rows}


def test_a_scoring_that_comes_or_is_mended_later_is_taken_at_the_next_build(cohort, source, built, tmp_path, run, digests):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    first = run(arguments)
    assert "1 of 3 recordings has no scoring" in first.stdout
    rows = records(out)
    assert [row["scored_epochs"] > 0 for row in rows.values()] == [True, False, False]
    assert "not well-formed" in rows["200002"]["provenance"]["scoring_refused"] and len(rows["200002"]["channels"]) == 10
    before = digests(out)
    assert "built again" not in run(arguments).stdout and digests(out) == before

    shutil.copy(cohort / SCORINGS / "shhs1-200003-nsrr.xml", source / SCORINGS)
    second = run(arguments)
    assert second.returncode == 1 and "shard-000001.tar is built again" in second.stdout
    assert "shhs1-200003.edf has a scoring that came or changed since" in second.stdout
    after = digests(out)
    assert after["shards/shard-000000.tar"] == before["shards/shard-000000.tar"]
    assert after["shards/shard-000001.tar"] != before["shards/shard-000001.tar"]

    shutil.copy(cohort / SCORINGS / "shhs1-200002-nsrr.xml", source / SCORINGS)
    third = run(arguments)
    assert third.returncode == 0 and "shard-000000.tar is built again" in third.stdout
    assert "whole" in run(["verify", out]).stdout
    whole = {row.record: row for row in Dataset.open(built).records}
    assert all(row.scored_epochs == whole[row.record].scored_epochs for row in Dataset.open(out).records)
    # As if all had been there from the start.
    fresh = tmp_path / "fresh"
    assert run(["build", source, fresh, *arguments[3:]]).returncode == 0
    assert digests(fresh) == digests(out)
    assert run(arguments).returncode == 0 and digests(fresh) == digests(out)


def test_a_stage_that_is_corrected_in_a_scoring_of_the_same_size_is_taken(source, tmp_path, run, digests):
    """And one that was only copied anew, with another time of change, is not."""
    out, xml = tmp_path / "out", source / SCORINGS / "shhs1-200001-nsrr.xml"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    run(arguments)
    before, content = digests(out), xml.read_bytes()
    kept = sidecar(out, 0)["scored_with"][f"{EDFS}/shhs1-200001.edf"]
    assert kept == [xml.name, len(content), hashlib.sha256(content).hexdigest()]
    os.utime(xml, ns=(1, 1))
    assert "built again" not in run(arguments).stdout and digests(out) == before
    assert records(out)["200001"]["epochs_N2"] > 0
    xml.write_bytes(content.replace(b"Stage 2 sleep|2", b"Stage 3 sleep|3"))
    os.utime(xml, ns=(1, 1))
    assert "shhs1-200001.edf has a scoring that came or changed since" in run(arguments).stdout
    assert records(out)["200001"]["epochs_N2"] == 0 and "whole" in run(["verify", out]).stdout
    assert "built again" not in run(arguments).stdout


def test_a_scoring_of_which_an_earlier_version_kept_the_size_alone_is_taken_with_rebuild(source, tmp_path, run):
    out, xml = tmp_path / "out", source / SCORINGS / "shhs1-200001-nsrr.xml"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    run(arguments)
    for number in (0, 1):
        content = sidecar(out, number)
        content["scored_with"] = {path: held and held[:2] for path, held in content["scored_with"].items()}
        content["digest"] = _digest({key: value for key, value in content.items() if key != "digest"})
        write_json(out / "shards" / f"shard-00000{number}.json", content, compact=True)
    xml.write_text(xml.read_text().replace("Stage 2 sleep|2", "Stage 3 sleep|3"))
    assert "built again" not in run(arguments).stdout and records(out)["200001"]["epochs_N2"] > 0
    assert "shard-000000.tar is built again" in run([*arguments, "--rebuild"]).stdout
    assert records(out)["200001"]["epochs_N2"] == 0
    assert "built again" not in run([*arguments, "--rebuild"]).stdout


def test_required_and_ignored(cohort, source, tmp_path, run):
    out = tmp_path / "required"
    arguments = ["build", source, out, "--cohort", "shhs1", "scoring=require"]
    assert run(arguments).returncode == 1
    refused = {Path(row["source"]).stem: row for row in pq.read_table(out / "manifest/quarantine.parquet").to_pylist()}
    assert {row["error"] for row in refused.values()} == {"AnnotationError"} and len(refused) == 2
    assert "a scoring is required" in refused["shhs1-200003"]["reason"]
    # What was refused for its scoring is tried again when that is another one.
    shutil.copy(cohort / SCORINGS / "shhs1-200003-nsrr.xml", source / SCORINGS)
    assert run(arguments).returncode == 1
    assert sorted(records(out)) == ["200001", "200003"]

    out = tmp_path / "ignored"
    result = run(["build", source, out, "--cohort", "shhs1", "scoring=ignore"])
    assert result.returncode == 0 and "scoring" not in result.stdout
    assert all(row["scored_epochs"] == 0 and row["provenance"]["scoring_refused"] == "" for row in records(out).values())
    again = run(["build", source, out, "--cohort", "shhs1"])
    assert again.returncode == 2 and "scoring='ignore', this one has scoring='if_valid'" in again.stderr


def test_a_refused_recording_is_not_in_twice_when_its_first_shard_is_built_again(cohort, source, tmp_path, run):
    out = tmp_path / "out"
    night = source / EDFS / "shhs1-200002.edf"
    content = night.read_bytes()
    night.write_bytes(content[:1500])
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=3"]
    assert run(arguments).returncode == 1
    night.write_bytes(content)
    assert run(arguments).returncode == 1
    assert sorted(records(out)) == ["200001", "200002", "200003"]
    shutil.copy(cohort / SCORINGS / "shhs1-200003-nsrr.xml", source / SCORINGS)
    assert "shard-000000.tar is built again" in run(arguments).stdout
    assert sorted(records(out)) == ["200001", "200002", "200003"] and records(out)["200003"]["scored_epochs"] > 0
    assert "whole" in run(["verify", out]).stdout


def test_a_scoring_that_is_taken_for_two_recordings_is_named_with_both(cohort, tmp_path, run):
    """By its name and its bytes: tables of one name in two folders are two scorings."""
    source = tmp_path / "source"
    edf, xml = cohort / EDFS / "shhs1-200001.edf", cohort / SCORINGS / "shhs1-200001-nsrr.xml"
    for number, (folder, name) in enumerate((("a", "P1"), ("b", "P10"), ("c", "P3"))):
        (source / folder / "own").mkdir(parents=True)
        write_another_night(edf, source / folder / f"{name}.edf", number)
    (source / "tables").mkdir()
    shutil.copy(xml, source / "tables" / "P10_x.xml")
    shutil.copy(xml, source / "c" / "own" / "night.xml")
    rules = tmp_path / "lab.yaml"
    rules.write_text("extends: shhs1.yaml\nname: lab\nscoring: {files: [own/night.xml, 'tables/{stem}*.xml']}\n")
    result = run(["build", source, tmp_path / "out", "--cohort", rules])
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stdout.splitlines() if line.startswith("warning: ") and "is taken for" in line]
    assert len(told) == 1 and told[0].startswith("warning: P10_x.xml is taken for 2 recordings: a/P1.edf, b/P10.edf; ")
