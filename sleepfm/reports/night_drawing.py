"""The whole night on one axis of clock time: hypnogram, hypnodensity, confidence, events, SpO2 and each channel's quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import time
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.evaluation.events import event_family, runs
from sleepfm.reports.night_facts import (
    SCORED,
    NightExample,
    event_rows,
    first_page,
    human_stages,
    looked_for,
)
from sleepfm.reports.svg import NARROW, Picture, Scale, bars, envelope, for_both, polyline, ticks
from sleepfm.signals.quality import unusable

# From the top of a hypnogram.
HYPNOGRAM_ORDER = (Stage.W, Stage.REM, Stage.N1, Stage.N2, Stage.N3)
# Steps between labels of the time axis, in s, and how many labels fit.
_STEPS = (60, 300, 600, 900, 1800, 3600, 7200, 10800, 14400)
_GAP, _ROW = 14, 15


def night_drawing(example: NightExample) -> Markup:
    """The picture of :func:`draw_night` for a wide and for a narrow page."""
    return for_both(lambda width: draw_night(example, width))


def draw_night(example: NightExample, width: int) -> Picture:
    """The night on ``width`` pixels; a panel of what nobody scored or recorded is left out."""
    score, narrow = example.score, width == NARROW
    drawing = _Night(example, width)
    if "stage" in score.models:
        drawing.hypnogram("Model", score.stages)
        drawing.density()
        drawing.confidence()
    if human_stages(example):
        drawing.hypnogram("Human", example.prepared.stage)
        if "stage" in score.models:
            drawing.differences()
    drawing.events()
    if score.saturation is not None and np.isfinite(score.saturation).any():
        drawing.oximetry(64 if narrow else 84)
    if example.position is not None:
        drawing.position()
    drawing.quality()
    return drawing.finished()


def night_alt(example: NightExample) -> str:
    """The night's picture in words and numbers."""
    score = example.score
    parts = []
    if "stage" in score.models:
        minutes = ", ".join(f"{name} {value:.0f} min" for name, value in score.statistics.stage_minutes.items() if value == value)
        parts.append(f"Stages by the model: {minutes or 'none'}")
        sure = _confidence(score.hypnodensity)
        if np.isfinite(sure).any():
            parts.append(f"mean confidence {np.nanmean(sure):.2f}")
    parts += [f"{name}: {len(events)}" for name, events in event_rows(example).items()]
    parts += [f"{figure.name} {figure.value}" for figure in first_page(example)[2:]]
    return f"Night of {score.n_epochs / 120:.1f} h. {'; '.join(parts)}."


class _Night:
    """A picture that grows downwards, panel by panel, on one axis of seconds."""

    def __init__(self, example: NightExample, width: int) -> None:
        self._example, self._score = example, example.score
        self._left = 86 if width == NARROW else 122
        self._narrow = width == NARROW
        self._end = example.score.n_epochs * float(EPOCH_SECONDS)
        self._x = Scale(0.0, self._end or 1.0, self._left, width - 10)
        self._picture = Picture(width, 0, night_alt(example))
        self._top = 24.0
        self._time_labels = time_ticks(example.clock, self._end, 5 if self._narrow else 13)

    def hypnogram(self, label: str, stages: NDArray[np.int8]) -> None:
        """Step line of ``stages`` [E], Wake on top and a heavy bar on REM; unscored epochs are hatched."""
        height = 78 if self._narrow else 96
        self._title(label)
        row = height / (len(HYPNOGRAM_ORDER) - 1)
        level = {int(stage): self._top + 6 + row * number for number, stage in enumerate(HYPNOGRAM_ORDER)}
        for stage in HYPNOGRAM_ORDER:
            self._picture.line(self._left, level[stage], self._x.stop, level[stage], "grid")
            self._picture.text(self._left - 6, level[stage] + 4, stage.name, "small", "end")
        self._hatch(stages < 0, self._top, height + 12)
        edges = [0, *(np.flatnonzero(np.diff(stages)) + 1).tolist(), len(stages)]
        commands, last = [], None
        for start, stop in pairwise(edges):
            if stop == start or stages[start] < 0:
                last = None
                continue
            y = level[int(stages[start])]
            left, right = self._at(start), self._at(stop)
            commands.append(f"V{y:.1f}H{right:.1f}" if last is not None else f"M{left:.1f} {y:.1f}H{right:.1f}")
            last = y
        self._picture.path("".join(commands), "hypnogram")
        rem = [(self._at(a), self._at(b)) for a, b in runs(stages == Stage.REM)]
        self._picture.path(bars(rem, level[Stage.REM] - 3, 6), "s-REM")
        self._top += height + 12 + _GAP

    def density(self) -> None:
        """Stacked probability of the stages, Wake on top; nothing in unscored epochs. REM is hatched as well as coloured."""
        height, density = (84 if self._narrow else 110), self._score.hypnodensity
        self._title("Probability")
        size = max(1, math.ceil(len(density) / (self._x.stop - self._left)))
        columns = _means(density, size)
        y = Scale(0.0, 1.0, self._top + height, self._top)
        there = np.isfinite(columns).all(axis=1)
        # Painted from the back: each layer reaches from its upper edge to the bottom.
        upper = np.cumsum([np.nan_to_num(columns[:, s]) for s in reversed(HYPNOGRAM_ORDER)], axis=0)[::-1]
        for stage, edge in zip(HYPNOGRAM_ORDER, upper, strict=True):
            commands = []
            for start, stop in runs(there):
                commands.append(f"M{self._at(start * size):.1f} {y.start:.1f}")
                for column in range(start, stop):
                    right = self._at(min((column + 1) * size, len(density)))
                    commands.append(f"V{y(min(float(edge[column]), 1.0)):.1f}H{right:.1f}")
                commands.append(f"V{y.start:.1f}z")
            self._picture.path("".join(commands), f"s-{stage.name} layer")
        self._hatch(~np.isfinite(density.sum(axis=1)), self._top, height)
        for share, name in ((0.0, "0"), (0.5, "½"), (1.0, "1")):
            self._picture.text(self._left - 6, y(share) + 4, name, "small", "end")
        self._top += height + _GAP

    def confidence(self) -> None:
        """Probability of the stage that is named: mean of each column of pixels."""
        height = 30
        self._title("Confidence")
        size = max(1, math.ceil(self._score.n_epochs / (self._x.stop - self._left)))
        sure = _means(_confidence(self._score.hypnodensity)[:, None], size)[:, 0]
        y = Scale(0.2, 1.0, self._top + height, self._top)
        middle = [(self._at(n * size) + self._at(min((n + 1) * size, self._score.n_epochs))) / 2 for n in range(len(sure))]
        self._picture.line(self._left, y(0.5), self._x.stop, y(0.5), "grid")
        self._picture.path(polyline(middle, y.of(sure)), "trace")
        self._picture.text(self._left - 6, y(0.5) + 4, "½", "small", "end")
        self._top += height + _GAP

    def differences(self) -> None:
        """Epochs in which model and human have another stage."""
        mine, theirs = self._score.stages, self._example.prepared.stage
        other = (mine != theirs) & (mine >= 0) & (theirs >= 0)
        self._row("Differ" if self._narrow else "Stages differ", [(self._at(a), self._at(b)) for a, b in runs(other)], "differ")
        self._top += _GAP - 4

    def events(self) -> None:
        """A line of bars for each family and scorer, then arousals and desaturations."""
        rows = {row_name(name, self._narrow): (events, _family(name)) for name, events in event_rows(self._example).items()}
        if "arousal" in self._score.event_threshold and looked_for(self._score, "arousal"):
            rows["Arousal"] = ([e for e in self._score.events if e.type == "arousal"], "arousal")
        if self._score.saturation is not None and np.isfinite(self._score.saturation).any():
            rows["Desat." if self._narrow else "Desaturation"] = (
                [fall.as_event() for fall in self._score.desaturations],
                "desaturation",
            )
        for name, (events, family) in rows.items():
            spans = [(self._x(e.onset), self._x(e.onset + e.duration)) for e in events]
            self._row(name, spans, f"e-{family}")
        self._top += _GAP if rows else 0

    def oximetry(self, height: int) -> None:
        """Highest and lowest SpO2 of each column of pixels, with a line at 90 %."""
        values = self._score.saturation
        assert values is not None
        self._title("SpO₂ %")
        lowest = min(85.0, math.floor(float(np.nanmin(values)) / 5) * 5.0)
        y = Scale(lowest, 100.0, self._top + height, self._top)
        for level in ticks(lowest, 100, 4):
            self._picture.line(self._left, y(level), self._x.stop, y(level), "strong-grid" if level == 90 else "grid")
            self._picture.text(self._left - 6, y(level) + 4, f"{level:.0f}", "small", "end")
        self._picture.path(envelope(self._x, y, values, int(self._x.stop - self._left)), "oxygen")
        self._top += height + _GAP

    def position(self) -> None:
        """A line for each position of the body that occurs."""
        position = self._example.position
        assert position is not None
        for number, name in enumerate(position.names):
            spans = [(self._at(a), self._at(b)) for a, b in runs(position.epochs == number)]
            if spans:
                self._row(name.capitalize(), spans, "position")
        self._top += _GAP

    def quality(self) -> None:
        """A line for each channel: full where it is good, low where it is flagged but used, hollow where it is unusable."""
        night = self._example.prepared
        if not night.channels:
            return
        self._title("Signal")
        for name in night.channels:
            flags = night.quality[name]
            lost = unusable(flags)
            for where, css, inset in ((flags == 0, "good", 0.0), ((flags > 0) & ~lost, "flagged", 3.0)):
                spans = [(self._at(a), self._at(b)) for a, b in runs(where)]
                self._picture.path(bars(spans, self._top + 2 + inset, _ROW - 5 - 2 * inset), css)
            spans = [(self._at(a), self._at(b)) for a, b in runs(lost)]
            self._picture.path(bars(spans, self._top + 2.5, _ROW - 6), "lost")
            self._picture.text(self._left - 6, self._top + 11, _short(name) if self._narrow else name, "small", "end")
            self._top += _ROW
        self._top += _GAP - 6

    def finished(self) -> Picture:
        """The picture with its axes of time, and lights off and on."""
        bottom = self._top
        for tick, label in self._time_labels:
            x = self._x(tick)
            self._picture.line(x, 20, x, bottom, "grid")
            self._picture.text(x, 12, label, "small", "middle")
            self._picture.text(x, bottom + 14, label, "small", "middle")
        lights = self._example.score.lights
        for at, name in ((lights.off, "lights off"), (lights.on, "lights on")):
            if at is not None:
                x = self._x(at)
                self._picture.line(x, 20, x, bottom + 4, "lights")
                anchor = "end" if x > (self._left + self._x.stop) / 2 else "start"
                self._picture.text(x, bottom + 28, name, "small strong", anchor)
        self._picture.height = bottom + (34 if (lights.off, lights.on) != (None, None) else 20)
        return self._picture

    def _title(self, text: str) -> None:
        """Beside a panel on a wide page, above it on a narrow one."""
        self._picture.text(2, self._top + (8 if self._narrow else 14), text, "small strong")
        self._top += 16 if self._narrow else 0

    def _row(self, name: str, spans: Sequence[tuple[float, float]], css: str) -> None:
        self._picture.line(self._left, self._top + _ROW - 2, self._x.stop, self._top + _ROW - 2, "grid")
        self._picture.path(bars(spans, self._top + 2, _ROW - 5, 1.2), css)
        self._picture.text(self._left - 6, self._top + 11, name, "small", "end")
        self._top += _ROW

    def _hatch(self, where: NDArray[np.bool_], top: float, height: float) -> None:
        for start, stop in runs(where):
            self._picture.rect(self._at(start), top, self._at(stop) - self._at(start), height, "unscored")

    def _at(self, epoch: int) -> float:
        return self._x(epoch * float(EPOCH_SECONDS))


def time_ticks(clock: Callable[[float], str], seconds: float, most: int) -> list[tuple[float, str]]:
    """Seconds and labels of at most ``most`` round times: of day where ``clock`` knows them, else hours from the start."""
    begin = clock(0.0)
    of_day = 0.0
    if begin:
        start = time.fromisoformat(begin)
        of_day = start.hour * 3600.0 + start.minute * 60 + start.second
    step = next((step for step in _STEPS if seconds / step <= most), _STEPS[-1])
    first = -of_day % step
    found = np.arange(first, seconds + 1, step).tolist()
    if begin:
        return [(second, clock(second)[:5]) for second in found]
    return [(second, f"{second / 3600:g} h" if step >= 1800 else f"{second / 60:g} min") for second in found]


def _confidence(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability [E] of the stage that is named, nan where unscored."""
    return np.where(np.isnan(density).any(axis=1), np.nan, np.nan_to_num(density).max(axis=1, initial=0.0))


def _means(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Mean [ceil(E / size), K] of ``size`` rows each, nan where none of them is scored."""
    padded = np.concatenate([values, np.full((-len(values) % size, values.shape[1]), np.nan)]).reshape(-1, size, values.shape[1])
    count = np.isfinite(padded).sum(axis=1)
    return np.divide(np.nansum(padded, axis=1), count, out=np.full(count.shape, np.nan), where=count > 0)


def row_name(name: str, narrow: bool) -> str:
    """``apnea, scored`` as ``Apnea, human``; short on a narrow page."""
    kind, _, what = name.partition(",")
    what = {"": "", " scored": "human", " positive epochs": "epochs"}[what]
    if narrow:
        short = {"apnea": "Apnea", "hypopnea": "Hyp."}[kind]
        return f"{short} {what}".strip()
    return f"{kind.capitalize()}{', ' + what if what else ''}"


def _family(name: str) -> str:
    return event_family(name.removesuffix(SCORED).partition(",")[0])


def _short(channel: str) -> str:
    return {"EMG_CHIN": "CHIN", "AIRFLOW": "FLOW", "ABDOMEN": "ABDOM"}.get(channel, channel.replace("_", " "))


def stage_legend() -> list[str]:
    """Stages in the order of the pictures."""
    return [STAGE_NAMES[stage] for stage in HYPNOGRAM_ORDER]
