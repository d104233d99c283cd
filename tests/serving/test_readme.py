"""What README.md, docs/quickstart.md, docs/scoring.md and docs/registry.md tell to type, beside a registry with the champions of
all tasks. Blocks that begin with `# needs` need more than that.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from registered_models import register_champion

from sleepfm import builtin
from sleepfm.cli import main
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.registry.scorer_version import bind_champions

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> Iterator[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    yield from (block for block in found if not block.startswith("# needs "))


def commands(page: str) -> list[list[str]]:
    """The words of each command of ``page``; each calls ``sleepfm``."""
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    assert {line[0] for line in lines} == {"sleepfm"}
    return [line[1:] for line in lines]


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
    lines = commands("docs/quickstart.md")
    assert [line[0] for line in lines] == ["doctor", "score", "score"]
    for line in lines:
        assert main(line) == 0, line
    assert (folder / "scored" / "night" / "report.html").is_file()
    assert (folder / "compared" / "night" / "scoring.edf").is_file()


def test_the_commands_of_the_readme_work_from_a_synthetic_night_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (block,) = blocks("README.md", "sh")
    first, helped, *lines = (shlex.split(line, comments=True) for line in block.splitlines())
    assert (first, helped) == ([".", ".venv/bin/activate"], ["sleepfm", "--help"])
    for line in lines:
        if line[0] == "cp":
            (night,) = Path().glob(line[1])
            shutil.copy(night, line[2])
            continue
        if "--hours" in line:
            line[line.index("--hours") + 1] = "0.25"
        assert line[0] == "sleepfm" and main(line[1:]) == 0, line
    assert [line[1] for line in lines if line[0] == "sleepfm"] == ["synth", "doctor", "score"]
    written = {path.name for path in Path("scored/night").iterdir()}
    assert {"report.html", "stages.csv", "events.csv", "scoring.edf"} <= written
    assert "1 recording: 1 usable" in capsys.readouterr().out


def test_the_commands_about_scoring_work_beside_built_in_models(
    folder: Path, downstream_packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for task, package in downstream_packages.items():
        shutil.copytree(package, folder / "weights" / task)
    about = {
        "trained_on": "nothing",
        "measured_on": "nothing",
        "version": "0.2.0",
        "tasks": {task: {} for task in downstream_packages},
    }
    (folder / "weights" / builtin.ABOUT).write_text(json.dumps(about))
    monkeypatch.setattr(builtin, "WEIGHTS", folder / "weights")
    # The registry has one version of each model, and the shell puts files in the place of a pattern.
    here = {"SRC": "nights", "models:/sleepfm-stage/3": "models:/sleepfm-stage/1", "*.edf": "night.edf"}
    lines = commands("docs/scoring.md")
    assert [line[0] for line in lines] == ["score", "score", "score", "embed"]
    for line in lines:
        assert main([here.get(word, word) for word in line]) == 0, line
    assert (folder / "scored" / "night" / "report.html").is_file()
    assert (folder / "embeddings.parquet").is_file()


@pytest.mark.slow
def test_the_page_of_the_registry_works_as_it_stands(
    recordings: list[Path],
    downstream_packages: dict[str, Path],
    encoder_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    encoder = register_champion(store, "sleepfm-synthsleepnet", encoder_package, {"val/probe_kappa": 0.4})
    for task in ("stage", "stage", *downstream_packages):
        register_champion(
            store, f"sleepfm-{task}", downstream_packages[task], {"val/f1": 0.5}, (f"sleepfm-synthsleepnet:{encoder}",)
        )
    bind_champions(CHAMPIONS, store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for line in commands("docs/registry.md"):
        assert main(line) == 0, line
    said = capsys.readouterr().out
    assert "sleepfm-scorer" in said and (tmp_path / "scorer" / "stage" / "model.safetensors").is_file()
    for number, name in enumerate(("night", "night1", "night2")):
        shutil.copy(recordings[number], tmp_path / f"{name}.edf")
    names: dict[str, Any] = {"stages_of_night1": [2] * 15 + [0] * 15, "stages_of_night2": [2] * 20 + [3] * 10}
    before = mlflow.get_tracking_uri()
    try:
        for block in blocks("docs/registry.md", "python"):
            exec(compile(block, "docs/registry.md", "exec"), names)
    finally:
        mlflow.set_tracking_uri(before)
    assert len(names["nights"]) == 2 and "model" in names
