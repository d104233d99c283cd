"""One of a thing is told in the singular, and what rounds to zero has no minus."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sleepfm.evaluation.intervals import Metric
from sleepfm.reports.rendering import format_metric, format_number, format_quantity, format_signed
from sleepfm.wording import counted, for_number

ROOT = Path(__file__).resolve().parents[1]
# What a command says of a single recording, night or person is read by everybody who tries the program.
NOUNS = re.compile(r"^ (recordings|people|nights|gaps|cells)\b")
# In these places there are never fewer than two, or the sentence goes on for one as for several ("none of the 1 …").
SEVERAL = {
    "sleepfm/evaluation/intervals.py",
    "sleepfm/registry/people.py",
    "sleepfm/serving/inputs.py",
    "sleepfm/signals/scorings/finder.py",
    "sleepfm/signals/scorings/text_counts.py",
    "sleepfm/stages/model_cards.py",
    "shards/left_out.py",
    "shards/schedule.py",
}


def test_one_is_told_in_the_singular() -> None:
    assert [counted(number, "recording") for number in (0, 1, 2)] == ["0 recordings", "1 recording", "2 recordings"]
    assert (counted(1, "person"), counted(3, "person")) == ("1 person", "3 people")
    assert [for_number(number, "has") for number in (0, 1, 2)] == ["have", "has", "have"]


def numbers_before_nouns(source: Path) -> Iterator[str]:
    """Places where a number is written before the plural of a noun, whatever the number is."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                whole = isinstance(value, ast.FormattedValue) and value.format_spec is None
                if whole and isinstance(text, ast.Constant) and NOUNS.match(str(text.value)):
                    yield f"{source.relative_to(ROOT).as_posix()}:{node.lineno}: {ast.unparse(value)}{text.value}"


@pytest.mark.parametrize("package", ["sleepfm", "shards", "launch"])
def test_a_number_before_a_noun_is_counted(package: str) -> None:
    found = [place for source in sorted((ROOT / package).rglob("*.py")) for place in numbers_before_nouns(source)]
    assert [place for place in found if place.split(":")[0] not in SEVERAL] == []


def test_what_rounds_to_zero_has_no_minus() -> None:
    metric = Metric(-0.0004, -0.00001, 0.01)
    assert (format_number(-0.04), format_number(-0.0), format_signed(-0.04), format_signed(-0.06)) == (
        "0.0",
        "0.0",
        "+0.0",
        "-0.1",
    )
    assert str(format_metric(metric)) == '0.000 <span class="ci">0.000–0.010</span>'
    assert str(format_quantity(metric)) == '0.0 <span class="ci">0.0 to 0.0</span>'


@pytest.mark.parametrize(
    "folder", ["sleepfm/reports", "sleepfm/evaluation", "sleepfm/stages", "sleepfm/commands", "sleepfm/demo"]
)
def test_figures_that_may_be_negative_are_written_without_a_negative_zero(folder: str) -> None:
    pattern = re.compile(r"(?:metric\.value|bias\.value|ci_low|ci_high|difference)[^{}()\"]*:\+?\d*\.(?:\d|\{digits\})f\}")
    found = [
        f"{source.name}:{number}: {line.strip()}"
        for source in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []
