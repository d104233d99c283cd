"""Every command in the documents is one that the program takes, whether or not another test can run it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import shards.__main__
import sleepfm.cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("sleepfm", "python -m shards", "deepspeed", "make")


def blocks(page: Path) -> Iterator[list[str]]:
    """The lines of each block of shell in ``page``, a command a line."""
    language: str | None = None
    block: list[str] = []
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("```"):
            if language in ("", "sh", "bash"):
                yield block
            language, block = (text[3:] if language is None else None), []
        else:
            block.append(text)


BLOCKS = [(page.name, block) for page in PAGES for block in blocks(page)]
# Those that call a program of this project.
CALLS = tuple(f"{name} " for name in PROGRAMS)
COMMANDS = sorted({line for _, block in BLOCKS for line in block if line.startswith(CALLS) and "…" not in line})


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the arguments as the program does, and do nothing."""
    words = shlex.split(line, comments=True)
    if words[0] == "sleepfm":
        monkeypatch.setattr(sleepfm.cli, "exit_with", lambda run: 0)
        sleepfm.cli.main(words[1:])
    elif words[:3] == ["python", "-m", "shards"]:
        monkeypatch.setattr(shards.__main__, "exit_with", lambda run: 0)
        shards.__main__.main(words[3:])
    elif words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    else:
        for word in words[1:]:
            assert not word.startswith(("configs/", "launch/")) or (ROOT / word).is_file(), word


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_is_one_that_the_program_takes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if {"--help", "--version"} & set(shlex.split(line, comments=True)):
        return
    try:
        parsed(line, monkeypatch)
    except SystemExit as error:
        pytest.fail(f"{line}: is refused with {error.code}")


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 60


# What a test cannot run as it is printed, since the machine of the tests lacks what it needs.
LACKING = re.compile(
    r"sbatch|srun|NODES=|nsrr |deepspeed --hostfile|(deepspeed|sleepfm \w+) .*-(base|8gpu)\.yaml(?!.*--dry-run)"
    r"|.*-(64|512)gpu\.yaml|make gpu-check|python scripts/paper\.py|git push|(sudo )?apt-get"
)
# Who runs the blocks of a page that do not say what they need.
RUN_BY = {
    "CONTRIBUTING.md": "test_contributing.py",
    "README.md": "serving/test_readme.py",
    "convert.md": "models/test_convert.py",
    "nsrr.md": "shards/test_documented_commands.py",
    "own-recordings.md": "test_own_recordings.py",
    "quickstart.md": "serving/test_readme.py",
    "registry.md": "serving/test_readme.py",
    "scoring.md": "serving/test_readme.py",
    "training.md": "training/test_steering_manual.py",
}


def test_a_block_that_needs_more_than_a_computer_says_so() -> None:
    needy = [(name, block) for name, block in BLOCKS if any(map(LACKING.match, block))]
    assert len(needy) >= 10
    assert [(name, block[0]) for name, block in needy if not block[0].startswith("# needs ")] == []


def test_a_page_with_other_commands_has_a_test_that_runs_them() -> None:
    plain = {
        name for name, block in BLOCKS if not block[0].startswith("# needs ") and any(line.startswith(CALLS) for line in block)
    }
    assert plain == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8"), page
