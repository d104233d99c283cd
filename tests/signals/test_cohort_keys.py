"""The manual's reference of a cohort file's keys is what the schema says, and its examples are valid."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from sleepfm.config import load_config
from sleepfm.signals.cohorts.cohort import PLACEHOLDERS, ChannelRule, Cohort, IdentityRule, Recognise, ScoringRules

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cohort-keys.md"
SECTIONS = (Cohort, Recognise, IdentityRule, ScoringRules, ChannelRule)


def keys() -> Iterator[tuple[type[BaseModel], str]]:
    yield from ((section, name) for section in SECTIONS for name in section.model_fields)


def test_the_page_is_what_the_schema_says() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts" / "cohort_keys.py"], capture_output=True, text=True, check=True)
    assert made.stdout == PAGE.read_text(encoding="utf-8"), "run: python scripts/cohort_keys.py > docs/cohort-keys.md"


@pytest.mark.parametrize(("section", "name"), keys())
def test_every_key_says_what_it_is_for_and_its_example_is_valid(section: type[BaseModel], name: str) -> None:
    field = section.model_fields[name]
    assert field.description and field.description.endswith(".")
    for value in field.examples or ():
        # Of a scoring's patterns, names and events the section's own validator says more than the type.
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
        if section in (IdentityRule, Recognise, ScoringRules):
            section.model_validate({name: value})
    assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")


def test_the_page_shows_placeholders_that_files_may_use(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    files = [f"{{{name}}}.csv" for name in PLACEHOLDERS]
    assert all(f"| `{{{name}}}` |" in page for name in ("stem", "folder", "key"))
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"extends": "generic.yaml", "name": "lab", "scoring": {"files": files}}))
    assert load_config(Cohort, tmp_path / "lab.yaml").scoring.files == tuple(files)
