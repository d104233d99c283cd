"""What a reader meets first on every page: that it is for research only."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_report import made_example, made_regression, made_result, without_breathing

from sleepfm.reports.evaluation_page import evaluation_page
from sleepfm.reports.night_page import night_page
from sleepfm.reports.report import ReportData, build_report

NOTICE = "For research only; not a medical device."
UNCHECKED = "Scored by models; a trained person must check the signals before these results are used."
ELSEWHERE = "Figures of one model on one set of people; others may be another matter."
# What shows a result, beside text.
SHOWN = ("figure", "table", "h1", "h2", "img")


class Reading(HTMLParser):
    """Texts of the body and the beginnings of :data:`SHOWN` and of pictures, in the order in which a reader meets them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.met: list[str] = []
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("body", "style"):
            self._within.append(tag)
        if tag in SHOWN or ("role", "img") in attrs:
            self.met.append(f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if self._within == ["body"] and data.strip():
            self.met.append(data.strip())


@pytest.fixture(scope="module")
def pages(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    example = made_example(recordings[0])
    night_page(folder / "night.html", example)
    night_page(folder / "bare.html", without_breathing(example))
    evaluation_page(folder / "evaluation.html", made_result())
    evaluation_page(folder / "regression.html", made_regression())
    build_report(folder / "report", ReportData(title="A run", results=[made_result()], night=example))
    return {path.stem: path for path in folder.rglob("*.html")} | {"night of a run": folder / "report" / "night.html"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("night", UNCHECKED),
        ("bare", UNCHECKED),
        ("night of a run", UNCHECKED),
        ("evaluation", ELSEWHERE),
        ("evaluation-sleepfm-stage-v3-test", ELSEWHERE),
        ("regression", ELSEWHERE),
        ("index", "Nothing here is a diagnosis."),
    ],
)
def test_the_notice_comes_before_everything_else(pages: dict[str, Path], name: str, own: str) -> None:
    met = Reading(pages[name].read_text(encoding="utf-8")).met
    assert met[:3] == [NOTICE, own, "<h1>"]
    # The page goes on, so that there is something that it comes before.
    assert {"<table>", "<svg>", "<figure>"} <= set(met)
    # And once more at the end, for who scrolls there.
    assert met[-1].endswith("For research; not a medical device.")
