"""What the README and the quick start tell a newcomer to type, beside a registry with the champions of all tasks."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sleepfm.cli import main

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(store: str, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a night, once alone and once beside its scoring, to work in."""
    (tmp_path / "nights").mkdir()
    shutil.copy(recordings[0], tmp_path / "night.edf")
    shutil.copy(recordings[0], tmp_path / "nights" / "night.edf")
    (scoring,) = recordings[0].parents[2].rglob(f"{recordings[0].stem}-nsrr.xml")
    shutil.copy(scoring, tmp_path / "nights" / "night-scoring.xml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_python_runs_as_it_stands(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(page, "python")
    names: dict[str, object] = {}
    exec(compile(code, page, "exec"), names)
    assert "night" in names and capsys.readouterr().out


def test_the_commands_of_the_quick_start_work_as_they_stand(folder: Path) -> None:
    lines = [shlex.split(line, comments=True) for block in blocks("docs/quickstart.md", "sh") for line in block.splitlines()]
    assert {line[0] for line in lines} == {"sleepfm"} and [line[1] for line in lines] == ["doctor", "score", "score"]
    for line in lines:
        assert main(line[1:]) == 0, line
    assert (folder / "scored" / "night" / "report.html").is_file()
    assert (folder / "compared" / "night" / "scoring.edf").is_file()
