"""docs/own-recordings.md, followed as it stands: its files are written, its commands run, and what it quotes was printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_laboratory import write_laboratory

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-recordings.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<file>\S*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
# What makes the jobs of the page short; nothing is learnt.
SHORT = {
    "pretrain": ["train.steps=2", "train.global_batch=16", "train.warmup=1"],
    "probe": ["train.steps=10"],
}


class Reader:
    """Somebody who follows the page in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "SLEEPFM_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self.environment = kept | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def follow(self, *headings: str) -> None:
        """Do what the sections say, block after block."""
        for heading in headings:
            for block in BLOCK.finditer(sections()[heading]):
                self._do(block["language"], block["file"], block["text"])

    def _do(self, language: str, file: str, text: str) -> None:
        if language == "yaml":
            with (self.folder / file.removeprefix(">>")).open("a" if file.startswith(">>") else "w", encoding="utf-8") as sink:
                sink.write(text)
        elif language == "text":
            for line in text.splitlines():
                assert line.strip() in self.printed, f"{line!r} was not printed:\n{self.printed[-8000:]}"
        else:
            assert language == "sh"
            self.printed = ""
            for line in text.splitlines():
                self._command(line)

    def _command(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            self.environment |= dict([words[1].split("=", 1)])
            return
        if words[0] == "python":
            words[0] = sys.executable
        for job, settings in SHORT.items():
            words += settings if words[:2] == ["sleepfm", job] else []
        if "sleepfm.demo" in words:
            self._begin(words)
            return
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600)
        self.printed += done.stdout + done.stderr
        assert done.returncode == ("status 1" in line), f"{line}\n{self.printed[-8000:]}"

    def _begin(self, words: list[str]) -> None:
        """Run the demo up to its first step."""
        process = subprocess.Popen(
            [words[0], "-u", *words[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self.printed += line
                if line.startswith("[ 1/"):
                    return
            raise AssertionError(self.printed)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def sections() -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("laboratory")
    write_laboratory(folder, range(1, 11), hours=0.5, seed=3)
    yield Reader(folder)


@pytest.mark.slow
def test_the_cohort_file_that_the_doctor_leads_to(reader: Reader) -> None:
    reader.follow("Look", "Say what is what", "Scorings")
    command = [sys.executable, "-m", "sleepfm.cli", "doctor", "recordings", "--cohort", "lakeside.yaml", "--json"]
    done = subprocess.run(command, cwd=reader.folder, env=reader.environment, capture_output=True, text=True)
    found = {Path(finding["path"]).stem: finding for finding in json.loads(done.stdout)}
    usable = [finding for finding in found.values() if not finding["refused"]]
    assert len(usable) == 21 and {finding["subject"] for finding in usable} == {f"ls-P{n:02d}" for n in (*range(1, 11), 91)}
    assert all(len(finding["channels"]) == 10 and not finding["unclear"] for finding in usable)
    assert sum(finding["scored_epochs"] > 0 for finding in usable) == 16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_the_folder_to_a_scored_night(reader: Reader) -> None:
    reader.follow(*sections())
    scored = reader.folder / "scored" / "P02_night2"
    assert {"report.html", "stages.csv", "events.csv"} <= {path.name for path in scored.iterdir()}
    card = (reader.folder / "runs" / "stage" / "package" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "test" in card


def test_every_command_of_the_page_is_in_a_block_that_is_run() -> None:
    blocks = [block["language"] for block in BLOCK.finditer(PAGE)]
    assert PAGE.count("```") == 2 * (len(blocks) + 1), "one block shows the folder; the others name their language"
    assert set(blocks) == {"sh", "yaml", "text"}
