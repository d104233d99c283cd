"""The night as one raster picture (``night.png``), in the field's habits: Wake on top, REM stressed, time in hours.

Drawn by Pillow, which is imported in a twentieth of a second; a plotting library takes half a second, and as long again to draw.
The pages draw their own pictures (:mod:`sleepfm.reports.svg`), which a phone and a dark page need otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.events import event_family, runs
from sleepfm.inference.night_score import NightScore
from sleepfm.reports.night_drawing import HYPNOGRAM_ORDER
from sleepfm.reports.night_facts import NightExample, event_rows, found_rows, human_stages
from sleepfm.reports.palette import EVENT_COLOURS, LIGHT, STAGE_COLOURS
from sleepfm.reports.svg import ticks
from sleepfm.signals.scorings.scoring import Event

INK, FAINT, EDGE, PAPER = (LIGHT[name] for name in ("ink", "line", "edge", "paper"))
# In pixels of the finished picture. It is drawn at twice the size and halved, which smooths lines.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, GAP = 1210, 150, 20, 52, 48, 30
HEIGHTS = {"density": 120, "model": 120, "human": 120, "events": 88, "spo2": 84}
TITLES = {"density": "hypnodensity", "model": "model", "human": "scored", "events": "events", "spo2": "SpO2 (%)"}
_FINER = 2
# Lines of the time axis, in hours.
_STEPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 6.0)
_MOST_STEPS = 13


def night_png(example: NightExample) -> bytes:
    """``night.png``: the whole night on one page, as the bytes of a PNG file; the same night gives the same bytes."""
    score = example.score
    picture = night_picture(
        score.stages,
        score.hypnodensity,
        event_rows(example),
        title=score.record,
        staged="stage" in score.models,
        scored_stages=example.prepared.stage if human_stages(example) else None,
        spo2=score.saturation,
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def plot_score(score: NightScore) -> Image.Image:
    """What the models say about a night, on one page; a human scoring is not among it."""
    rows: dict[str, Sequence[Event]] = {}
    for kind in KINDS:
        rows |= found_rows(score, kind)
    return night_picture(
        score.stages, score.hypnodensity, rows, title=score.record, staged="stage" in score.models, spo2=score.saturation
    )


def night_picture(
    stages: ArrayLike,
    density: NDArray[np.floating],
    rows: Mapping[str, Sequence[Event]],
    *,
    title: str,
    staged: bool = True,
    scored_stages: ArrayLike | None = None,
    spo2: NDArray[np.floating] | None = None,
) -> Image.Image:
    """The whole night on one page: hypnodensity, hypnogram over the human one, events, oxygen saturation.

    Args:
        stages: [E] scored by the model, -1 unscored.
        density: [E, 5] probabilities, nan where unscored.
        rows: what each line of the events' panel is called, and its events; no panel without a line.
        staged: whether a model scored stages; its panels are left out if not.
        scored_stages: the human hypnogram where there is one.
        spo2: [30 E] oxygen saturation of every second in percent, nan where it was not scored.
    """
    panels = ["density", "model"] if staged else []
    panels += ["human"] if scored_stages is not None else []
    panels += ["events"] if rows else []
    panels += ["spo2"] if spo2 is not None else []
    page = _Page(title, panels, len(np.asarray(stages)))
    if staged:
        page.density(density)
        page.hypnogram("model", np.asarray(stages))
    if scored_stages is not None:
        page.hypnogram("human", np.asarray(scored_stages))
    if rows:
        page.events(rows)
    if spo2 is not None:
        page.saturation(spo2)
    return page.finished()


class _Page:
    """The picture, panel below panel on one axis of hours. Places are in pixels of the finished picture."""

    def __init__(self, title: str, panels: Sequence[str], n_epochs: int) -> None:
        self._hours = max(n_epochs, 1) * EPOCH_SECONDS / 3600
        self._top, y = {}, TOP
        for name in panels:
            self._top[name] = y
            y += HEIGHTS[name] + GAP
        self._image = Image.new("RGB", (WIDTH * _FINER, (y - GAP + BOTTOM) * _FINER), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._text(LEFT, 14, title, 15, "lm")
        x = WIDTH - RIGHT
        for stage in reversed(HYPNOGRAM_ORDER):
            self._text(x, 14, stage.name, 12, "rm")
            x -= 18 + round(_font(12).getlength(stage.name))
            self._box(x, 8, x + 12, 20, STAGE_COLOURS[stage.name])
            x -= 16
        for name, top in self._top.items():
            self._text(LEFT, top - 9, TITLES[name], 12, "lm")
        self._time_axis()

    def density(self, density: NDArray[np.floating]) -> None:
        """Stacked probability [E, 5] of the stages, Wake on top; nothing in unscored epochs."""
        top, height, width = self._top["density"], HEIGHTS["density"] * _FINER, (WIDTH - RIGHT - LEFT) * _FINER
        if len(density):
            # From the bottom: of each pixel, the first stage whose layer reaches above it.
            order = list(reversed(HYPNOGRAM_ORDER))
            columns = density[np.arange(width) * len(density) // width][:, [int(stage) for stage in order]]
            level = 1 - (np.arange(height) + 0.5) / height
            layer = np.minimum((level[:, None, None] >= columns.cumsum(axis=1)[None]).sum(axis=2), len(order) - 1)
            colours = np.array([ImageColor.getrgb(STAGE_COLOURS[stage.name]) for stage in order], np.uint8)
            pixels = colours[layer]
            pixels[:, ~np.isfinite(columns).all(axis=1)] = ImageColor.getrgb(PAPER)
            self._image.paste(Image.fromarray(pixels), (LEFT * _FINER, top * _FINER))
        self._axes("density", {0.0: "0", 0.5: "0.5", 1.0: "1"}, (0.0, 1.0))

    def hypnogram(self, name: str, stages: NDArray[np.integer]) -> None:
        """Step line of ``stages`` [E] with a bar on every REM period; unscored epochs leave a gap, which is shaded."""
        height = {int(stage): float(len(HYPNOGRAM_ORDER) - 1 - row) for row, stage in enumerate(HYPNOGRAM_ORDER)}
        span = (-0.5, len(HYPNOGRAM_ORDER) - 0.5)
        top = self._top[name]
        for start, stop in runs(stages < 0):
            self._box(self._x(start), top, self._x(stop), top + HEIGHTS[name], FAINT)
        for start, stop in runs(stages >= 0):
            levels = np.array([height[stage] for stage in stages[start:stop].tolist()])
            x, y = np.repeat(np.arange(start, stop + 1), 2)[1:-1], np.repeat(levels, 2)
            self._line([(self._x(a), self._y(name, b, span)) for a, b in zip(x.tolist(), y.tolist(), strict=True)], 1)
        rem = self._y(name, height[int(Stage.REM)], span)
        for start, stop in runs(stages == Stage.REM):
            self._box(self._x(start), rem - 2, self._x(stop), rem + 2, STAGE_COLOURS["REM"])
        self._axes(name, {height[int(stage)]: stage.name for stage in HYPNOGRAM_ORDER}, span)

    def events(self, rows: Mapping[str, Sequence[Event]]) -> None:
        """One line of bars per entry of ``rows``, first on top; a bar is at least a pixel wide."""
        span = (-0.6, len(rows) - 0.4)
        level = {float(len(rows) - 1 - number): name for number, name in enumerate(rows)}
        for place, name in level.items():
            for event in rows[name]:
                left = self._x(event.onset / EPOCH_SECONDS)
                right = max(left + 1, self._x((event.onset + event.duration) / EPOCH_SECONDS))
                above, below = self._y("events", place + 0.35, span), self._y("events", place - 0.35, span)
                self._box(left, above, right, below, EVENT_COLOURS[event_family(event.type)])
        self._axes("events", level, span)

    def saturation(self, spo2: NDArray[np.floating]) -> None:
        """Every fifth second of ``spo2`` [30 E] in percent; a gap where it was not scored."""
        values = spo2[::5]
        known = values[np.isfinite(values)]
        span = (float(known.min()) - 1, float(known.max()) + 1) if len(known) else (90.0, 100.0)
        for start, stop in runs(np.isfinite(values)):
            places = range(start, stop)
            self._line([(self._x(5 * n / EPOCH_SECONDS), self._y("spo2", float(values[n]), span)) for n in places], 1)
        self._axes("spo2", {value: f"{value:g}" for value in ticks(*span, 4)}, span)

    def finished(self) -> Image.Image:
        """The picture at its own size."""
        return self._image.reduce(_FINER)

    def _time_axis(self) -> None:
        step = next((step for step in _STEPS if self._hours / step < _MOST_STEPS), self._hours / _MOST_STEPS)
        below = self._image.height // _FINER - BOTTOM
        for number in range(int(self._hours / step) + 1):
            x = self._x(number * step * 3600 / EPOCH_SECONDS)
            for name, top in self._top.items():
                self._draw.line(self._finer([(x, top), (x, top + HEIGHTS[name])]), FAINT, _FINER // 2)
            self._text(x, below + 12, f"{number * step:g}", 12, "mm")
        self._text((LEFT + WIDTH - RIGHT) / 2, below + 34, "hours from start of recording", 12, "mm")

    def _axes(self, name: str, labels: Mapping[float, str], span: tuple[float, float]) -> None:
        top, bottom = self._top[name], self._top[name] + HEIGHTS[name]
        self._draw.line(self._finer([(LEFT, top), (LEFT, bottom), (WIDTH - RIGHT, bottom)]), EDGE, _FINER)
        for value, label in labels.items():
            self._text(LEFT - 6, self._y(name, value, span), label, 12, "rm")

    def _x(self, epochs: float) -> float:
        return LEFT + epochs * EPOCH_SECONDS / 3600 / self._hours * (WIDTH - RIGHT - LEFT)

    def _y(self, name: str, value: float, span: tuple[float, float]) -> float:
        return self._top[name] + HEIGHTS[name] * (span[1] - value) / (span[1] - span[0])

    def _line(self, points: Sequence[tuple[float, float]], width: int) -> None:
        self._draw.line(self._finer(points), INK, width * _FINER)

    def _box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        (x0, y0), (x1, y1) = self._finer([(left, top), (right, bottom)])
        # Pillow's boxes hold their last pixel.
        self._draw.rectangle([x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)], colour)

    def _text(self, x: float, y: float, text: str, size: int, anchor: str) -> None:
        # The font that Pillow brings has no more.
        shown = text.encode("ascii", "backslashreplace").decode()
        self._draw.text((x * _FINER, y * _FINER), shown, INK, _font(size * _FINER), anchor)

    @staticmethod
    def _finer(points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        return [(round(x * _FINER), round(y * _FINER)) for x, y in points]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
