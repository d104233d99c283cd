"""The pages in Chromium: nothing leaves its window, scrolls sideways or lies on other text, all of it can be read, and two sheets
of paper hold a night.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import browser, measured, pages_of_print
from made_report import made_example, without_breathing

from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.paired import paired_agreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.regression import evaluate_regression
from sleepfm.reports.evaluation_page import RegressionResult, Result, evaluation_page
from sleepfm.reports.night_page import night_page
from sleepfm.tasks import TASKS

WIDTHS = [320, 390, 768, 1280]


@pytest.fixture(scope="module")
def pages(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A night with all that a page can show, one with as little, and an evaluation."""
    browser()
    folder = tmp_path_factory.mktemp("pages")
    example = made_example(recordings[0], times=8)
    night_page(folder / "night.html", example)
    night_page(folder / "bare.html", without_breathing(example))
    evaluation_page(folder / "evaluation.html", made_result())
    evaluation_page(folder / "regression.html", made_regression())
    return [folder / name for name in ("night.html", "bare.html", "evaluation.html", "regression.html")]


def made_regression(n_people: int = 30) -> RegressionResult:
    """Ages of some people by a model that is some years off."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 90, n_people)
    estimate, subject = truth + rng.normal(2, 6, n_people), [f"person-{n}" for n in range(n_people)]
    found = evaluate_regression("age", truth, estimate, subject, 55.0, unit="years", n_boot=50)
    paired = paired_agreement("age", truth, estimate, subject, unit="years", n_boot=0)
    return RegressionResult("age of a recording", "sleepfm-age", "test", found, paired, "none: nobody")


def made_result(n_people: int = 12, n_epochs: int = 60) -> Result:
    """Stages of some people by a model that is right four times out of five."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, n_people * n_epochs)
    density = rng.dirichlet(np.ones(5), len(truth)) * 0.5
    density[np.arange(len(truth)), np.where(rng.random(len(truth)) < 0.8, truth, (truth + 1) % 5)] += 0.5
    subject = np.repeat([f"person-{n}" for n in range(n_people)], n_epochs)
    found = evaluate(TASKS["stage"], truth, density, subject, n_boot=50)
    predictions = Predictions(subject, subject, np.tile(np.arange(n_epochs), n_people), truth, density)
    rows = [(fraction, seed) for fraction in (0.01, 0.1, 1.0) for seed in range(3)]
    curve = [{"fraction": fraction, "seed": seed, "kappa": 0.6 + 0.2 * fraction - 0.02 * seed} for fraction, seed in rows]
    result = Result("Stages", "sleepfm-stage v3", "test", found, 700, predictions=predictions, label_curve=curve)
    return replace(result, leakage="none")


def test_pages_fit_phone_and_desk_and_can_be_read_light_and_dark(pages: list[Path]) -> None:
    seen = measured(pages[0].parent, pages, WIDTHS)
    assert len(seen) == len(pages) * 2 * len(WIDTHS)
    for each in seen:
        where = f"{each.page} at {each.width}, {'dark' if each.dark else 'light'}"
        assert each.found["width"] == each.width, where
        assert each.found["scroll"] <= each.width and not each.found["wide"], (where, each.found["wide"][:5])
        for name in ("texts", "shapes", "left", "over"):
            assert not each.found[name], (where, name, each.found[name][:5])
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
    )
    bad.write_text(text.replace("<footer>", f"{planted}<footer>"), encoding="utf-8")
    found = measured(bad.parent, [bad], [390])[0].found
    assert found["scroll"] > 390 and any("wide" in each for each in found["wide"])
    assert any(each.startswith("scrolls") for each in found["wide"]) and any("pale" in each for each in found["texts"])
    assert any("leaves" in each for each in found["left"]) and any("another" in each for each in found["over"])
    assert any("pale" in each for each in found["shapes"])


def test_a_night_is_two_sheets_of_paper(pages: list[Path]) -> None:
    assert [pages_of_print(pages[0].parent, page) for page in pages[:2]] == [2, 2]
