"""The pages in Chromium: nothing leaves its window, scrolls sideways or lies on other text, all of it can be read, the notice is
on top, pictures are redrawn for a phone, and two sheets of paper hold a night.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import browser, measured, pages_of_print, said_on_paper
from made_report import made_apneas, made_example, made_regression, made_result, made_run, made_warnings, without_breathing

from sleepfm.reports.evaluation_page import evaluation_page
from sleepfm.reports.night_page import night_page
from sleepfm.reports.report import build_report

WIDTHS = [320, 390, 768, 1280]


@pytest.fixture(scope="module")
def pages(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A night with all that a page can show, one with as little, evaluations, and the report of a run."""
    browser()
    folder = tmp_path_factory.mktemp("pages")
    example = made_example(recordings[0], times=8)
    night_page(folder / "night.html", example)
    night_page(folder / "bare.html", without_breathing(example))
    evaluation_page(folder / "evaluation.html", made_result())
    evaluation_page(folder / "regression.html", made_regression())
    evaluation_page(folder / "events.html", made_apneas())
    build_report(folder, made_run(example, folder))
    names = ("night.html", "bare.html", "evaluation.html", "regression.html", "events.html", "index.html")
    return [folder / name for name in names]


def test_pages_fit_phone_and_desk_and_can_be_read_light_and_dark(pages: list[Path]) -> None:
    seen = measured(pages[0].parent, pages, WIDTHS)
    assert len(seen) == len(pages) * 2 * len(WIDTHS)
    for each in seen:
        where = f"{each.page} at {each.width}, {'dark' if each.dark else 'light'}"
        assert each.found["width"] == each.width, where
        assert each.found["scroll"] <= each.width and not each.found["wide"], (where, each.found["wide"][:5])
        for name in ("texts", "shapes", "left", "over", "small"):
            assert not each.found[name], (where, name, each.found[name][:5])
        assert each.found["least"] >= 9, where
        # At the top, above the title and everything that one could take for a result.
        assert 0 < each.found["notice"] <= each.found["begins"] < 200, where
    # What was measured was there: a picture for the phone and another for the desk.
    night = {each.width: each.found for each in seen if each.page == "night.html" and not each.dark}
    assert {"hypnogram", "oxygen", "e-apnea", "lost", "good", "t"} <= set(night[390]["kinds"]) & set(night[1280]["kinds"])


def test_a_page_that_does_not_fit_or_cannot_be_read_is_found(pages: list[Path]) -> None:
    """What the other test looks for, planted."""
    text = pages[1].read_text(encoding="utf-8")
    bad = pages[1].with_name("bad.html")
    planted = (
        '<div style="width: 500px">wide</div><p style="color: #aaa; background: #fff">pale</p>'
        '<div style="overflow-x: auto; width: 100px"><div style="width: 200px">sideways</div></div>'
        '<svg width="100" height="20"><text x="0" y="12">one text</text><text x="4" y="12">another</text>'
        '<text x="90" y="12">leaves</text><rect class="pale" width="4" height="4" style="fill: #ddd"/></svg>'
        # Drawn for a desk, and shrunk to the width of a phone.
        '<svg viewBox="0 0 1280 60" width="1280" height="60"><text x="9" y="30">shrunk</text>'
        '<text x="99" y="50" transform="rotate(-90 99 50)">turned</text></svg>'
    )
    bad.write_text(text.replace("<footer>", f"{planted}<footer>"), encoding="utf-8")
    found = measured(bad.parent, [bad], [390])[0].found
    assert found["scroll"] > 390 and any("wide" in each for each in found["wide"])
    assert any(each.startswith("scrolls") for each in found["wide"]) and any("pale" in each for each in found["texts"])
    assert any("leaves" in each for each in found["left"]) and any("another" in each for each in found["over"])
    assert any("pale" in each for each in found["shapes"])
    assert all(any(name in each for each in found["small"]) for name in ("shrunk", "turned")) and found["least"] < 5
    assert not any("one text" in each for each in found["small"])


def test_a_notice_that_is_not_on_top_is_found(pages: list[Path]) -> None:
    text = pages[2].read_text(encoding="utf-8")
    bad = pages[2].with_name("notice-below.html")
    (notice,) = re.findall(r'<p class="notice">.*?</p>', text)
    below = text.replace(notice, "").replace("<footer>", f"{notice}<footer>")
    hidden = text.replace(".notice {", ".notice { display: none;")
    for moved in (below, hidden):
        bad.write_text(moved, encoding="utf-8")
        found = measured(bad.parent, [bad], [390])[0].found
        assert found["notice"] is None or found["notice"] > found["begins"]


def test_a_night_is_two_sheets_of_paper(pages: list[Path]) -> None:
    assert [pages_of_print(pages[0].parent, page) for page in pages[:2]] == [2, 2]


def test_ten_hours_full_of_events_are_two_sheets_of_paper_that_say_what_they_leave_out(
    recordings: list[Path], tmp_path: Path
) -> None:
    browser()
    example = made_example(recordings[5], times=40)
    page, count = tmp_path / "night.html", sum(event.type != "arousal" for event in example.score.events)
    night_page(page, example)
    assert example.score.n_epochs == 1200 and count > 250 and page.stat().st_size <= 3_000_000
    assert pages_of_print(tmp_path, page) == 2
    said = said_on_paper(tmp_path, page)
    assert said.startswith("For research only; not a medical device.") and "Beside the human scoring" in said
    # Of the pages of events that one leafs through the first eight events, and how many there are.
    printed = [int(number) for number in re.findall(r"^(\d+)\. [a-z ]*pnea ", said, re.MULTILINE)]
    assert printed == list(range(1, 9)) and f"The first 8 of {count} are printed; the page on a screen shows all." in said
    assert "One page of signals" not in said and "next ›" not in said


def test_many_warnings_take_no_third_sheet_and_none_is_left_out(recordings: list[Path], tmp_path: Path) -> None:
    """The picture of the night gives them its room, and long ones end in dots."""
    browser()
    example = made_example(recordings[5], times=40)
    warnings = made_warnings(example.prepared)
    for number in (6, len(warnings)):
        page = tmp_path / f"night-{number}.html"
        score = replace(example.score, warnings=warnings[:number])
        night_page(page, replace(example, score=score, identity="M 02-MAY-1951 Doe_John"))
        assert pages_of_print(tmp_path, page) == 2, number
    said = said_on_paper(tmp_path, page)
    assert len(warnings) > 10 and all(warning in said for warning in warnings)
    assert "Each is printed on one line; the page on a screen has them whole." in said
