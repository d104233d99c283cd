"""The examples of CONTRIBUTING.md, taken out of the file and run section by section, each in a folder of its own."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest

from sleepfm.cli import main
from sleepfm.data.dataset import Dataset
from sleepfm.errors import AnnotationError
from sleepfm.inference.embed import stored_epochs
from sleepfm.inference.night_output import apply_to_epochs
from sleepfm.models.build import KINDS
from sleepfm.signals.scorings import reader
from sleepfm.tasks import TASKS
from sleepfm.training import job

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "training" / "toy.py"
TOY_JOB = """
train: {output: run, steps: 4, global_batch: 8, lr: 0.01, checkpoint_every: 4, validate_every: 2}
deepspeed: {zero: 1, dtype: fp32}
registry: {name: toy, metric: val/error, mode: min}
"""
BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<file>\S*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def sections() -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)\n", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run(heading: str) -> dict[str, Any]:
    """Write the files of a section below the working folder, run its commands and its Python; the latter's names."""
    names: dict[str, Any] = {"__name__": "example"}
    for block in BLOCK.finditer(sections()[heading]):
        if block["file"]:
            Path(block["file"]).parent.mkdir(parents=True, exist_ok=True)
            Path(block["file"]).write_text(block["text"], encoding="utf-8")
        elif block["language"] == "python":
            exec(compile(block["text"], f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), names)
        else:
            assert block["language"] == "sh"
            for line in block["text"].splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "sleepfm" and main(words) == 0, line
    return names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; what an example adds to a table is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "TRACKERS", list(job.TRACKERS))
    for table in (TASKS, KINDS):
        for name in ("wake", "spectrum"):
            monkeypatch.delitem(table, name, raising=False)
    monkeypatch.setattr(reader, "TEXT_FORMATS", list(reader.TEXT_FORMATS))
    yield tmp_path


def write_recording(path: Path) -> None:
    """Five minutes of noise under the labels of the example."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    signals = [
        edfio.EdfSignal(rng.normal(0, 20, 30_000), 100, label=label, physical_dimension="uV")
        for label in ("C4", "A1", "LOC", "A2", "Chin")
    ]
    edfio.Edf(signals).write(path)


def test_every_section_with_an_example_is_run_here() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    examples = [heading for heading, text in sections().items() if "```python" in text]
    assert [heading for heading in examples if f'("{heading}")' not in tests and f'["{heading}"]' not in tests] == []


def test_a_cohort(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(folder / "recordings" / "lake-12-1.edf")
    names = run("A cohort")
    assert set(names["montage"].channels) == {"EEG_C4", "EOG_L", "EMG_CHIN"}
    assert "1 recording" in capsys.readouterr().out


def test_a_scoring_format() -> None:
    names = run("A scoring format")
    assert names["scoring"].source == "diary lake-12-1.diary"
    broken = Path("recordings/broken.diary")
    broken.write_text("Lakeside sleep diary\n0 30 W\nlater N2\n")
    with pytest.raises(AnnotationError, match=r"broken\.diary: row 3: 'later N2'"):
        reader.read_scoring(broken)


def test_a_task(folder: Path) -> None:
    assert run("A task")["job"].task == "wake"


def test_a_model(folder: Path, dataset: Dataset, recordings: list[Path]) -> None:
    names = run("A model")
    row = int(dataset.select("test")[0])
    epochs = stored_epochs(dataset, dataset.names[row], names["encoder"].channels, 64)
    found = apply_to_epochs(names["probe"].eval(), epochs, 20)
    assert np.isfinite(found.epochs).all() and found.epochs.shape == (30, 5)


@pytest.mark.slow
def test_a_tracker(folder: Path) -> None:
    """The engine itself tells it, in a job of its own process."""
    section = sections()["A tracker"]
    blocks = [block["text"] for block in BLOCK.finditer(section) if block["language"] == "python"]
    (folder / "tracked.py").write_text("\n".join([*blocks, f"import runpy\nrunpy.run_path({str(TOY)!r}, run_name='__main__')\n"]))
    (folder / "toy.yaml").write_text(TOY_JOB)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-m", "sleepfm.training.launcher", "1", "tracked.py", "toy.yaml"],
        cwd=folder,
        env=kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{TOY.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with (folder / "run-validation.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows if row[1] == "val/error"] == ["2", "4"] and {row[3] for row in rows} <= {"0", "1"}
