"""The figures that the pages quote are those of benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from our_scripts import load_script

figures = load_script("figures")
PAGE = "A night takes\n12.3 s, or 1,234 s on a slow core: 5 % more.\n"
TABLE = """
docs/page.md:
  - text: "takes {:.1f} s, or {:,.0f} s on a slow core: {:.0f} % more"
    file: speed.json
    values: [night/seconds, {key: night/seconds, times: 100}, {key: night/all/1, over: night/all/0, plus: -1, times: 100}]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A page, a table and a result."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(PAGE)
    (tmp_path / "docs" / "figures.yaml").write_text(TABLE)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    content = {"night": {"seconds": 14.56, "all": [10, 12]}}
    (tmp_path / "benchmarks" / "results" / "speed.json").write_text(json.dumps(content))
    return tmp_path


def test_the_pages_quote_what_was_measured() -> None:
    assert figures.rewritten(figures.ROOT) == ({}, []), "run: python scripts/figures.py"


def test_figures_are_written_into_the_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--check"], root) == 1
    assert (root / "docs" / "page.md").read_text() == PAGE and "+ 14.6 s, or 1,456 s" in capsys.readouterr().out
    assert figures.main([], root) == 0
    assert (root / "docs" / "page.md").read_text() == "A night takes\n14.6 s, or 1,456 s on a slow core: 20 % more.\n"
    assert figures.main(["--check"], root) == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("slow core", "fast core", "is there 0 times, not once"),
        ("night/all/1", "night/all/2", "speed.json: no key 'night/all/2', at '2'"),
        ("[night/seconds, ", "[", "has 3 places for 2 values"),
        ("{key: night/seconds, times", "{key: night/all, times", "'night/all' is no number"),
        ("times: 100}]", "scale: 100}]", "unknown ['scale']"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    root: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    (root / "docs" / "figures.yaml").write_text(TABLE.replace(old, new))
    assert figures.main([], root) == 1
    assert words in capsys.readouterr().err and (root / "docs" / "page.md").read_text() == PAGE


def test_where_a_phrase_stands_twice_the_first_behind_other_words_is_meant(root: Path) -> None:
    (root / "docs" / "page.md").write_text("Here: 1 s.\n\nThere: 1 s. Later: 1 s.\n")
    table = "docs/page.md: [{text: '{:.0f} s', after: 'There:', file: speed.json, at: night, values: [seconds]}]\n"
    (root / "docs" / "figures.yaml").write_text(table)
    assert figures.main([], root) == 0
    assert (root / "docs" / "page.md").read_text() == "Here: 1 s.\n\nThere: 15 s. Later: 1 s.\n"


def test_a_phrase_that_is_there_twice_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "docs" / "page.md").write_text(PAGE + PAGE)
    assert figures.main([], root) == 1 and "is there 2 times" in capsys.readouterr().err
