"""The documents agree with the files that they speak of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from our_scripts import load_script

from sleepfm import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]
DEMO = ROOT / "benchmarks" / "results" / "demo-2026-11-30.json"


def anchors(page: Path) -> set[str]:
    """What GitHub and MyST call the headings of ``page``."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_short_and_says_first_what_comes_out() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    beginning = " ".join(lines[:10])
    assert all(word in beginning for word in ("sleep stages", "apneas", "AHI", "researchers"))


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_the_diagram_is_what_the_script_draws_of_the_demo() -> None:
    drawn = load_script("pictures").pipeline(json.loads(DEMO.read_text(encoding="utf-8")))
    assert drawn == (ROOT / "docs" / "images" / "pipeline.svg").read_text(encoding="utf-8"), "run: python scripts/pictures.py"


def test_the_picture_of_a_night_is_that_of_the_report() -> None:
    picture = '<div class="on-wide"><svg width="9"><g/></svg></div>'
    page = f'<style>/* Pictures. */\n.grid{{}}\n\n.leaf{{}}</style><svg><defs></defs></svg><h2 id="night">The night</h2>{picture}'
    drawn = load_script("pictures").night(page)
    assert (
        '<svg xmlns="http://www.w3.org/2000/svg" width="9">' in drawn
        and ".grid{}" in drawn
        and ".leaf" not in drawn
        and "<g/>" in drawn
    )
    with pytest.raises(SystemExit, match="no picture"):
        load_script("pictures").night("<html></html>")
