"""Cohort files of somebody's own in a build, whose tasks may run where neither its environment nor its folder is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.build_config import everywhere, identity, load_build_config
from shards.scored_with import kept_of
from sleepfm.data.dataset import Dataset
from sleepfm.signals.cohorts.catalogue import OWN_COHORTS

LAB = "extends: shhs1.yaml\nname: lab\nsource: test\nrecognise: {name: '^shhs1-20000[12]'}\n"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "cohorts"
    folder.mkdir()
    (folder / "lab.yaml").write_text(LAB)
    return folder


def test_the_folder_goes_to_the_tasks_by_its_whole_path(lab, monkeypatch):
    monkeypatch.chdir(lab.parent)
    assert everywhere(load_build_config(None, ["cohort=cohorts"])).cohort == str(lab)
    assert everywhere(load_build_config()).cohort == "auto"
    plain = identity(load_build_config())
    monkeypatch.setenv(OWN_COHORTS, "cohorts")
    assert everywhere(load_build_config()).cohort == str(lab)
    assert everywhere(load_build_config(None, ["cohort=shhs1"])).cohort == "shhs1"
    # Each shard keeps the content of the rules it used; where they lie is nobody's.
    assert identity(load_build_config()) == plain


def test_a_build_takes_a_folder_of_cohorts(cohort, lab, tmp_path, run):
    out = tmp_path / "out"
    assert run(["build", cohort, out, "--cohort", os.path.relpath(lab)]).returncode == 0
    assert {row.record: row.cohort for row in Dataset.open(out).records} == {
        f"shhs1-20000{number}": "lab" if number < 3 else "shhs1" for number in range(1, 7)
    }


def test_what_earlier_versions_say_of_their_scorings():
    """A recording without one is known to have none; which file another one had is not known."""

    def record(source: str, scoring: dict | None, refused: str = "") -> dict:
        return {"source": source, "provenance": {"scoring": scoring, "scoring_refused": refused}}

    records = [record("a.edf", None), record("b.edf", {"source": "NSRR XML b.xml"}), record("c.edf", None, "c.csv: 'SW' (3)")]
    refusals = [{"path": "d.edf", "size": 1, "error": "AnnotationError", "reason": "x"}]
    assert kept_of({"records": records, "quarantine": refusals}) == {"a.edf": None}
    now = {"records": records, "quarantine": [refusals[0] | {"scoring": ["d.xml", 7]}], "scored_with": {"b.edf": ["b.xml", 5]}}
    assert kept_of(now) == {"a.edf": None, "b.edf": ("b.xml", 5, ""), "c.edf": None, "d.edf": ("d.xml", 7, "")}
