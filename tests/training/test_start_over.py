"""``--resume never`` over what a real run has left: it starts over, and removes nothing that a run has not written."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import CONFIG, alone, trace


@pytest.mark.slow
def test_a_run_starts_over_in_the_folder_of_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    first = alone(tmp_path)
    assert first.returncode == 0, first.stderr
    before = trace(tmp_path)
    again = alone(tmp_path, "train.lr=0.02", "--resume", "never")
    assert again.returncode == 0, again.stderr
    after = trace(tmp_path)
    assert [row["step"] for row in after] == list(range(1, 13)) and after[-1]["loss"] != before[-1]["loss"]

    note = tmp_path / "run" / "checkpoints" / "note.txt"
    note.write_text("mine")
    refused = alone(tmp_path, "train.lr=0.03", "--resume", "never")
    assert refused.returncode == 1 and str(note.relative_to(tmp_path)) in refused.stderr
    assert note.read_text() == "mine" and trace(tmp_path) == after
