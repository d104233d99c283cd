"""Colours: readable on their page, and apart from one another also for the colour-blind."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from made_report import made_example
from numpy.typing import NDArray

from sleepfm.reports.event_pages import event_pages
from sleepfm.reports.night_drawing import night_drawing
from sleepfm.reports.night_facts import NightExample
from sleepfm.reports.palette import DARK, EVENT_COLOURS, LIGHT, STAGE_COLOURS
from sleepfm.reports.rendering import render

# Simulations at full severity, on linear RGB (Machado, Oliveira and Fernandes 2009, IEEE Trans Vis Comput Graph 15:1291).
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}
STAGES = ("stage-w", "stage-n1", "stage-n2", "stage-n3", "stage-rem")
EVENTS = ("apnea", "hypopnea", "desaturation", "arousal")
SHAPES = (*STAGES, *EVENTS, "edge", "accent", "ink", "good", "flagged", "lost")


def linear(colour: str) -> NDArray[np.float64]:
    value = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    high, low = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of linear RGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    root = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def distance(one: str, other: str, sight: str) -> float:
    """How far two colours are apart for who has that ``sight``, in CIE L*a*b*."""
    return float(np.linalg.norm(lab(SIGHT[sight] @ linear(one)) - lab(SIGHT[sight] @ linear(other))))


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_shapes_stand_out_from_the_page(colours: dict[str, str]) -> None:
    for text, page in (("ink", "paper"), ("soft", "paper"), ("accent", "paper"), ("ink", "tint"), ("soft", "tint"),
                       ("notice-ink", "notice")):  # fmt: skip
        assert contrast(colours[text], colours[page]) >= 4.5, (text, page)
    for name in SHAPES:
        assert contrast(colours[name], colours["paper"]) >= 3, name
    # The darkest tint of a confusion matrix, a quarter of the accent, still lets its numbers be read.
    accent, paper = (np.array([int(colours[name][p : p + 2], 16) for p in (1, 3, 5)]) for name in ("accent", "paper"))
    tint = "#" + "".join(f"{round(v):02x}" for v in 0.26 * accent + 0.74 * paper)
    assert contrast(colours["ink"], tint) >= 4.5


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_stages_and_events_are_told_apart_by_everybody(colours: dict[str, str], sight: str) -> None:
    for group in (STAGES, EVENTS):
        for one, other in combinations(group, 2):
            assert distance(colours[one], colours[other], sight) >= 20, (sight, one, other)


def painted(sheet: str, names: str, dark: bool) -> str:
    """The colour in which the style ``sheet`` of a page fills a shape of the classes ``names``, or draws it if it is a line."""
    blocks = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{([^}]*)\}", sheet)]
    colours = blocks[0] | (blocks[1] if dark else {})
    rules = re.findall(r"(?<=[}\s])((?:\.[\w-]+)+) \{([^}]*)\}", sheet)
    style: dict[str, str] = {}
    # Of rules that fit, one with more classes wins, then the later.
    for selector, body in sorted(rules, key=lambda rule: rule[0].count(".")):
        if set(selector[1:].split(".")) <= set(names.split()):
            style |= dict(re.findall(r"([\w-]+): ([^;]+)", body))
    paint = style["stroke"] if style["fill"] == "none" else style["fill"]
    if pattern := re.fullmatch(r"url\(#([\w-]+)\)", paint):
        (paint,) = re.findall(rf'<pattern id="{pattern[1]}".*?fill="([^"]*)"', sheet)
    (name,) = re.findall(r"^var\(--([\w-]+)\)$", paint)
    return colours[name]


@pytest.fixture(scope="module")
def drawn(recordings: list[Path]) -> tuple[list[str], list[str]]:
    """The classes of what a night's page draws of REM, and of SpO2: of the night as a whole and of each event."""
    example = made_example(recordings[0], times=4)
    assert event_pages(example).count

    def kinds(shown: NightExample) -> set[str]:
        pictures = [night_drawing(shown), *(each.picture for page in event_pages(shown).pages for each in page)]
        return set(re.findall(r'<(?:path|rect|circle) class="([^"]*)"', "".join(pictures)))

    all_kinds = kinds(example)
    oxygen = all_kinds - kinds(replace(example, score=replace(example.score, saturation=None)))
    # Neither the line at 90 % nor the bars of desaturations.
    return sorted(kind for kind in all_kinds if "REM" in kind), sorted(oxygen - {"strong-grid", "e-desaturation"})


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_rem_and_oxygen_do_not_look_alike(drawn: tuple[list[str], list[str]], dark: bool, sight: str) -> None:
    """They were the same red once."""
    sheet, (rem, oxygen) = render("base.html"), drawn
    assert rem == ["s-REM", "s-REM layer"] and oxygen == ["oxygen", "t o"]
    for one, other in product(rem, oxygen):
        assert distance(painted(sheet, one, dark), painted(sheet, other, dark), sight) >= 20, (one, other)
    # And were they one colour again, it would be found.
    red = sheet.replace(".oxygen { fill: var(--ink); }", ".oxygen { fill: var(--stage-rem); }")
    assert red != sheet and distance(painted(red, "s-REM layer", dark), painted(red, "oxygen", dark), sight) < 1


def test_the_page_has_the_colours_of_the_palette() -> None:
    sheet = render("base.html")
    for dark, colours in ((False, LIGHT), (True, DARK)):
        assert painted(sheet, "s-REM", dark) == colours["stage-rem"] and painted(sheet, "e-apnea", dark) == colours["apnea"]
    assert LIGHT.keys() == DARK.keys()
    assert STAGE_COLOURS["REM"] == LIGHT["stage-rem"] and EVENT_COLOURS["apnea"] == LIGHT["apnea"]
