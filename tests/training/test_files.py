"""Files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepfm.errors import StorageError
from sleepfm.training.files import read_json, write_atomic, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "run.json", {"step": 3})
    assert read_json(tmp_path / "new" / "run.json") == {"step": 3}
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize("what", ["a folder in its place", "a file for its folder"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.json" if what == "a folder in its place" else tmp_path / "file" / "run.json"
    (tmp_path / "run.json").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=rf"{path}: cannot be written \(.+\); make room"):
        write_atomic(path, "{}")
    assert sorted(tmp_path.rglob("*")) == before
