"""One scoring file and several recordings whose names it may belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import AnnotationError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.discover import discover
from sleepfm.signals.doctor import examine_recordings
from sleepfm.signals.scorings.finder import SharedScorings, find_scoring


def night(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_edf(path, [Made("C4-M1", noise(100 * 60), 100)])


def rules(folder: Path, pattern: str) -> Path:
    path = folder / "lab.yaml"
    path.write_text(f"extends: generic.yaml\nname: lab\nsource: x\nscoring: {{files: ['{pattern}']}}\n")
    return path


def cohort(folder: Path, pattern: str) -> Cohort:
    return load_cohort(str(rules(folder, pattern)))


@pytest.mark.parametrize(
    ("pattern", "table"),
    [("{stem}*.csv", "P10_x.csv"), ("*{stem}[0-9_]*.csv", "x P10_.csv"), ("tables/{stem}*.csv", "tables/P10 stages.csv")],
)
def test_a_file_with_the_longer_name_of_another_recording_is_that_ones(tmp_path, pattern, table):
    first, second = night(tmp_path / "P1.edf"), night(tmp_path / "P10.edf")
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text("W\nN1\n")
    lab = cohort(tmp_path, pattern)
    assert find_scoring(first, tmp_path, lab) is None and find_scoring(second, tmp_path, lab) == tmp_path / table
    # Its own beside it is found, and a name that no other recording has in its own is its own too.
    own = tmp_path / table.replace("P10", "P1_")
    own.write_text("W\nN1\n")
    assert find_scoring(first, tmp_path, lab) == own and find_scoring(second, tmp_path, lab) == tmp_path / table
    second.unlink()
    with pytest.raises(AnnotationError, match="several scorings fit"):
        find_scoring(first, tmp_path, lab)


def test_the_doctor_says_that_several_scorings_far_above_a_recording_fit_it(tmp_path):
    root = tmp_path / "cohort"
    (root / "tables").mkdir(parents=True)
    night(root / "1/2/3/4/5/6/P1.edf")
    for name in ("P1 first.csv", "P1 second.csv"):
        (root / "tables" / name).write_text("W\nN1\n")
    lab = cohort(tmp_path, "tables/{stem}*.csv")
    (finding,) = examine_recordings(discover(root, lab), root, lab)
    assert "several scorings fit" in finding.scoring_refused


def test_marks_of_patterns_in_the_names_of_recordings_are_letters(tmp_path):
    first, second = night(tmp_path / "P[1].edf"), night(tmp_path / "P[1]0.edf")
    table = tmp_path / "P[1]0_x.csv"
    table.write_text("W\nN1\n")
    lab = cohort(tmp_path, "{stem}*.csv")
    assert find_scoring(first, tmp_path, lab) is None and find_scoring(second, tmp_path, lab) == table


def test_the_doctor_names_a_scoring_and_all_recordings_that_it_is_taken_for(tmp_path, capsys):
    paths = [night(tmp_path / "nights" / name) for name in ("a/P1.edf", "b/P10.edf", "b/P10.bdf", "c/P7.edf")]
    table = tmp_path / "nights" / "tables" / "P10_x.csv"
    table.parent.mkdir()
    table.write_text("W\nN1\n")
    main(["doctor", str(tmp_path / "nights"), "--cohort", str(rules(tmp_path, "tables/{stem}*.csv"))])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning    ") and "taken for" in line]
    assert [line.split("; if")[0] for line in lines] == [
        f"warning    {table} is taken for 3 recordings: {paths[0]}, {paths[2]}, {paths[1]}"
    ]


def test_a_night_in_two_formats_is_one_recording_to_its_scoring():
    shared = SharedScorings()
    for name in ("a/P1.bdf", "a/P1.edf"):
        shared.add("P1.csv", name)
    assert shared.lines(str) == []
    shared.add("P1.csv", "b/P1.edf")
    (line,) = shared.lines(str)
    assert line.startswith("P1.csv is taken for 2 recordings: a/P1.bdf, b/P1.edf; ")
