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


def lines(page: Path) -> Iterator[str]:
    """The lines of shell in blocks of ``page`` that call a program of this project."""
    language: str | None = None
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("```"):
            language = text[3:] if language is None else None
        elif language in ("", "sh", "bash") and text.startswith(tuple(f"{name} " for name in PROGRAMS)) and "…" not in text:
            yield text


COMMANDS = sorted({line for page in PAGES for line in lines(page)})


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
LACKING = re.compile(r"sbatch|srun|NODES=|nsrr |deepspeed --hostfile|(deepspeed|sleepfm \w+) .*-(base|8gpu)\.yaml(?!.*--dry-run)")


def blocks(page: Path) -> Iterator[list[str]]:
    """The lines of each block of shell in ``page``."""
    for language, text in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash"):
            yield [line.strip() for line in text.splitlines()]


def test_a_block_that_needs_more_than_a_computer_says_so() -> None:
    needy = [(page.name, block) for page in PAGES for block in blocks(page) if any(map(LACKING.match, block))]
    assert len(needy) >= 10
    assert [(name, block[0]) for name, block in needy if not block[0].startswith("# needs ")] == []
