"""The examples of CONTRIBUTING.md, taken out of the file and run section by section, each in a folder of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest

from sleepfm.cli import main
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings import reader

ROOT = Path(__file__).resolve().parents[1]
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
            exec(compile(block["text"], f"CONTRIBUTING.md, {heading}", "exec"), names)
        else:
            assert block["language"] == "sh"
            for line in block["text"].splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "sleepfm" and main(words) == 0, line
    return names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; formats that an example adds are taken away again."""
    monkeypatch.chdir(tmp_path)
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
    assert [heading for heading, text in sections().items() if "```python" in text and f'run("{heading}")' not in tests] == []


def test_a_cohort(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(folder / "recordings" / "lake-12-1.edf")
    names = run("A cohort")
    assert set(names["montage"].channels) == {"EEG_C4", "EOG_L", "EMG_CHIN"}
    assert "1 recordings" in capsys.readouterr().out


def test_a_scoring_format() -> None:
    names = run("A scoring format")
    assert names["scoring"].source == "diary lake-12-1.diary"
    broken = Path("recordings/broken.diary")
    broken.write_text("Lakeside sleep diary\n0 30 W\nlater N2\n")
    with pytest.raises(AnnotationError, match=r"broken\.diary: row 3: 'later N2'"):
        reader.read_scoring(broken)
