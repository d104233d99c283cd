"""Plots of model and human as Bland and Altman draw them: of the figures of one night, and of a figure of many nights."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_report import made_example, made_result, without_breathing

from sleepfm.constants import Stage
from sleepfm.reports.charts import night_difference_chart
from sleepfm.reports.evaluation_page import evaluation_page
from sleepfm.reports.night_comparison import ComparedFigure, compared_figures
from sleepfm.reports.night_facts import NightExample
from sleepfm.reports.night_page import night_page

ONE_NIGHT = "Difference of model and human against their mean, in minutes: "


@pytest.fixture(scope="module")
def example(recordings: list[Path]) -> NightExample:
    return made_example(recordings[5], times=4)


def picture_of(text: str, begins: str) -> tuple[str, str]:
    """The picture whose alternative text ``begins`` so: that text, and what is drawn."""
    ((alt, shapes),) = re.findall(rf'<svg [^>]*aria-label="({re.escape(begins)}[^"]*)"[^>]*>(.*?)</svg>', text, re.DOTALL)
    return unescape(alt), shapes


def dots(shapes: str) -> np.ndarray:
    """Places [N, 2] of the points of a picture, in pixels."""
    return np.array(re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', shapes), float)


def fits_a_scale(pixels: np.ndarray, values: np.ndarray) -> bool:
    """Whether ``pixels`` are a straight line of ``values``, to the tenth of a pixel to which they are written."""
    return bool(np.abs(np.polyval(np.polyfit(values, pixels, 1), values) - pixels).max() < 0.11)


def test_a_night_with_a_human_scoring_has_a_plot_of_its_figures(example: NightExample, tmp_path: Path) -> None:
    night_page(tmp_path / "night.html", example)
    text = (tmp_path / "night.html").read_text(encoding="utf-8")
    alt, shapes = picture_of(text, ONE_NIGHT)
    # Where a reader looks for it, and that one night has no limits.
    assert text.index('id="human"') < text.index(ONE_NIGHT) < text.index('id="channels"')
    assert "Bland–Altman plot of the night's figures; of one night there are no limits." in text
    figures = [figure for figure in compared_figures(example.score, example.prepared) if figure.unit == "min"]
    told = dict(re.findall(r"(?:^|, )([\w ]+) ([+-][\d.]+)", alt.removeprefix(ONE_NIGHT).removesuffix(".")))
    assert told == {figure.name: f"{figure.difference:+.1f}" for figure in figures} and len(told) > 6
    # Counted from the stages themselves, over the epochs in bed that both scored.
    mine, theirs = example.score.in_bed, example.prepared.stage
    both = (mine >= 0) & (theirs >= 0)
    for name, of in (("total sleep time", lambda stage: stage > Stage.W), ("N2", lambda stage: stage == Stage.N2)):
        assert float(told[name]) == pytest.approx((of(mine[both]).sum() - of(theirs[both]).sum()) / 2, abs=0.05), name
    assert len(set(told.values())) > 3
    places = dots(shapes)
    assert fits_a_scale(places[:, 0], np.array([(figure.model + figure.human) / 2 for figure in figures]))
    assert fits_a_scale(places[:, 1], np.array([figure.difference for figure in figures]))


def test_a_night_that_nobody_else_scored_has_none(example: NightExample, tmp_path: Path) -> None:
    night_page(tmp_path / "night.html", without_breathing(example))
    text = (tmp_path / "night.html").read_text(encoding="utf-8")
    assert ONE_NIGHT not in text and "Bland" not in text


def test_names_of_points_lie_on_no_point_and_points_on_one_place_share_their_name() -> None:
    """Latencies and short stages lie close together, and WASO is the wake of who slept at once."""
    near = {"sleep latency": (0.0, 0.0), "REM latency": (2.0, 2.0), "REM": (8.0, 8.0), "WASO": (23.5, 22.0), "W": (23.5, 22.0)}
    figures = [ComparedFigure(name, "min", *both) for name, both in (near | {"total sleep time": (87.5, 89.0)}).items()]
    shapes = str(night_difference_chart(figures))
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="small named">([^<]*)</text>', shapes)
    assert sorted(name for _, _, name in texts) == ["REM", "REM latency", "WASO, W", "sleep", "sleep latency"]
    places = dots(shapes)
    assert len(places) == 6
    for x, y, name in texts:
        # Some 6 pixels a letter, 8 above the base line and 3 below it.
        right, top, bottom = float(x) + 6 * len(name), float(y) - 8, float(y) + 3
        for across, down in places:
            assert not (float(x) - 3 < across < right + 3 and top - 3 < down < bottom + 3), name


def test_bias_and_limits_of_many_nights_are_those_of_the_evaluation(tmp_path: Path) -> None:
    result = made_result()
    evaluation_page(tmp_path / "evaluation.html", result)
    text = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    # By hand from the stages of each night: mean of the differences, and 1.96 standard deviations to either side (1986).
    predictions = result.predictions
    assert predictions is not None
    asleep = {}
    for name, stages in (("human", predictions.truth), ("model", predictions.probability.argmax(axis=1))):
        asleep[name] = (stages.reshape(12, -1) > Stage.W).sum(axis=1) / 2
    differences = asleep["model"] - asleep["human"]
    bias, spread = differences.mean(), 1.96 * differences.std(ddof=1)
    levels = [bias, bias - spread, bias + spread]
    found = result.sleep["total_sleep_time"]
    assert [found.bias.value, found.low.value, found.high.value] == pytest.approx(levels) and spread > 0.5

    alt, shapes = picture_of(text, "Bland-Altman plot of 12 nights, total sleep time")
    said = re.fullmatch(r".*: bias (-?[\d.]+), limits (-?[\d.]+) to (-?[\d.]+) \(min\)\.", alt)
    assert said is not None and list(said.groups()) == [f"{level:.1f}" for level in levels]
    places = dots(shapes)
    assert fits_a_scale(places[:, 0], (asleep["model"] + asleep["human"]) / 2) and fits_a_scale(places[:, 1], differences)
    # The lines are at those levels on the scale of the points, and each says its own.
    heights = [float(y) for y in re.findall(r'<path class="(?:trace|reference)" d="M[\d.]+ ([\d.]+)L', shapes)]
    assert np.polyval(np.polyfit(differences, places[:, 1], 1), levels) == pytest.approx(heights, abs=0.15)
    assert all(f">{level:.1f}</text>" in shapes for level in levels)
    assert "<figcaption>Total sleep time.</figcaption>" in text and "<figcaption>WASO.</figcaption>" in text


def test_other_figures_make_another_plot(tmp_path: Path) -> None:
    """The numbers are of the result and not of the page."""
    result = made_result()
    found = result.sleep["waso"]
    values = {"bias": 7.25, "low": -3.5, "high": 18.0}
    moved = replace(found, **{name: replace(getattr(found, name), value=value) for name, value in values.items()})
    evaluation_page(tmp_path / "evaluation.html", replace(result, sleep={"waso": moved}))
    alt, shapes = picture_of((tmp_path / "evaluation.html").read_text(encoding="utf-8"), "Bland-Altman plot of 12 nights, WASO")
    assert "bias 7.2, limits -3.5 to 18.0 (min)." in alt and ">18.0</text>" in shapes


def test_of_lines_on_one_place_one_has_its_number(tmp_path: Path) -> None:
    """Every night is off by the same amount."""
    result = made_result()
    same = {name: replace(getattr(result.sleep["waso"], name), value=-3.0) for name in ("bias", "low", "high")}
    moved = replace(result.sleep["waso"], **same)
    evaluation_page(tmp_path / "evaluation.html", replace(result, sleep={"waso": moved}))
    alt, shapes = picture_of((tmp_path / "evaluation.html").read_text(encoding="utf-8"), "Bland-Altman plot of 12 nights, WASO")
    assert "bias -3.0, limits -3.0 to -3.0 (min)." in alt and shapes.count(">-3.0</text>") == 1
