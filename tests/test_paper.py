"""The recipe of the paper: what it takes, what it runs, and its table. Nobody here has the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from our_scripts import load_script

from sleepfm.evaluation.metrics import evaluate
from sleepfm.files import write_json
from sleepfm.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
paper = load_script("paper")


@pytest.fixture
def shhs(tmp_path: Path) -> Path:
    """A download of four recordings of visit 1, three of them scored, and one of visit 2."""
    folder = tmp_path / "shhs"
    for number in range(200001, 200005):
        (folder / paper.EDFS).mkdir(parents=True, exist_ok=True)
        (folder / paper.EDFS / f"shhs1-{number}.edf").write_text("")
        (folder / paper.SCORINGS).mkdir(parents=True, exist_ok=True)
        if number < 200004:
            (folder / paper.SCORINGS / f"shhs1-{number}-nsrr.xml").write_text("")
    (folder / paper.EDFS.with_name("shhs2")).mkdir()
    (folder / paper.EDFS.with_name("shhs2") / "shhs2-200001.edf").write_text("")
    return folder


def test_the_wanted_recordings_of_visit_1_are_linked_with_their_scorings(shhs: Path, tmp_path: Path) -> None:
    assert paper.link_recordings(shhs, tmp_path / "all", None) == 4
    people = tmp_path / "people.txt"
    people.write_text("shhs1-200002\nshhs1-200004\n")
    assert paper.link_recordings(shhs, tmp_path / "few", people) == 2
    assert paper.link_recordings(shhs, tmp_path / "few", people) == 2, "a second time changes nothing"
    linked = sorted(path.name for path in (tmp_path / "few").rglob("shhs*") if path.is_symlink())
    assert linked == ["shhs1-200002-nsrr.xml", "shhs1-200002.edf", "shhs1-200004.edf"]


def test_a_recording_that_is_wanted_and_not_there_is_named(shhs: Path, tmp_path: Path) -> None:
    people = tmp_path / "people.txt"
    people.write_text("shhs1-200002\nshhs1-209999\n")
    with pytest.raises(SystemExit, match=r"1 of 2 recordings are not in .*shhs1, such as shhs1-209999"):
        paper.link_recordings(shhs, tmp_path / "out", people)


def test_encoders_come_before_what_is_made_of_them_and_every_configuration_is_there(tmp_path: Path) -> None:
    lines = [" ".join(command) for command in paper.commands(tmp_path / "shhs", tmp_path / "out", 8)]
    names = [line.split("train.output=")[1].split()[0].rsplit("/", 1)[1] for line in lines if "train.output=" in line]
    assert names[:5] == ["pretrain-eeg", "pretrain-eog", "pretrain-emg", "pretrain-ecg", "pretrain-multimodal"]
    assert len(names) == len(set(names)) == 14
    for line in lines:
        for word in line.split():
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word


def test_the_table_has_a_dash_where_nobody_has_run_it_and_figures_beside_the_baseline_elsewhere(tmp_path: Path) -> None:
    assert paper.table(tmp_path).count("–") == 9 * 5 + 3
    truth = np.tile([0, 0, 0, 1], 50)
    probability = np.where(np.eye(2)[truth] > 0, 0.9, 0.1)
    subjects = np.repeat(["a", "b"], 100)
    found = evaluate(TASKS["apnea"], truth, probability, subjects, n_boot=10)
    write_json(tmp_path / "finetune-apnea" / "evaluation.json", {"results": {"test": found.to_dict()}})
    (row,) = [line for line in paper.table(tmp_path).splitlines() if line.startswith("| apnea, fine-tuned")]
    assert row == "| apnea, fine-tuned | 99.75 | 100.00 (100.00 to 100.00) | 75.00 | 1.000 | 1.000 | 2 |"
