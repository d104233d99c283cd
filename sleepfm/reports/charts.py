"""Charts of results and of training, each of the width of a phone, so that a wide page has several in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.reliability import PersonFigure, Reliability
from sleepfm.reports.night_comparison import ComparedFigure, figure_title
from sleepfm.reports.rendering import format_defined
from sleepfm.reports.svg import Picture, Scale, polyline, ticks
from sleepfm.wording import counted

WIDTH, HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 36
# Height of a line of small text.
_TEXT = 14


class _Chart:
    """A picture with two axes."""

    def __init__(
        self,
        alt: str,
        x: tuple[float, float, str],
        y: tuple[float, float, str],
        x_ticks: Mapping[float, str] | None = None,
        y_ticks: Mapping[float, str] | None = None,
    ) -> None:
        self.picture = Picture(WIDTH, HEIGHT, alt)
        self.x = Scale(x[0], x[1], _LEFT, WIDTH - _RIGHT)
        self.y = Scale(y[0], y[1], HEIGHT - _BOTTOM, _TOP)
        for value, label in (x_ticks if x_ticks is not None else _named(x[0], x[1], 5)).items():
            self.picture.line(self.x(value), self.y.stop, self.x(value), self.y.start, "grid")
            self.picture.text(self.x(value), HEIGHT - _BOTTOM + 14, label, "small", "middle")
        for value, label in (y_ticks if y_ticks is not None else _named(y[0], y[1], 6)).items():
            self.picture.line(self.x.start, self.y(value), self.x.stop, self.y(value), "grid")
            self.picture.text(_LEFT - 5, self.y(value) + 4, label, "small", "end")
        self.picture.text((self.x.start + self.x.stop) / 2, HEIGHT - 5, x[2], "small", "middle")
        self.picture.text(11, (self.y.start + self.y.stop) / 2, y[2], "small", "middle", turned=True)

    def line(self, x: ArrayLike, y: ArrayLike, css: str) -> None:
        """A line through points in the units of the axes."""
        self.picture.path(polyline(self.x.of(x), self.y.of(y)), css)

    def dot(self, x: float, y: float, css: str = "dot", radius: float = 3.5) -> None:
        """A point in the units of the axes."""
        self.picture.circle(self.x(x), self.y(y), radius, css)

    def markup(self) -> Markup:
        """The picture's element."""
        return self.picture.markup()


def confusion_chart(confusion: ArrayLike, classes: Sequence[str]) -> Markup:
    """Row-normalised confusion matrix with counts; rows are truth, and one without a count has no shares."""
    counts = np.asarray(confusion, float)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    left, top = 78.0, 34.0
    cell = min(58.0, (WIDTH - left - 4) / len(classes))
    right = ", ".join(f"{name} {100 * share[k, k]:.0f} %" if totals[k] else f"{name} none" for k, name in enumerate(classes))
    picture = Picture(
        WIDTH, top + cell * len(classes) + 8, f"Confusion matrix. Share of each scored class that is right: {right}."
    )
    picture.text(left + cell * len(classes) / 2, 12, "model", "small", "middle")
    picture.text(11, top + cell * len(classes) / 2, "scored", "small", "middle", turned=True)
    for row, name in enumerate(classes):
        picture.text(left - 6, top + cell * (row + 0.5) + 4, name, "small", "end")
        picture.text(left + cell * (row + 0.5), 28, name, "small", "middle")
        for column in range(len(classes)):
            x, y = left + cell * column, top + cell * row
            # In tenths, each a tint on which text can be read.
            picture.rect(x, y, cell - 2, cell - 2, f"cell c{round(10 * share[row, column])}")
            shown = f"{100 * share[row, column]:.0f} %" if totals[row] else "–"
            picture.text(x + cell / 2 - 1, y + cell / 2 - 2, shown, "small strong" if row == column else "plain", "middle")
            picture.text(x + cell / 2 - 1, y + cell / 2 + 13, f"{counts[row, column]:.0f}", "plain", "middle")
    return picture.markup()


def loss_charts(traces: Mapping[str, Mapping[str, NDArray[np.floating]]]) -> dict[str, Markup]:
    """Loss against step, one chart a stage of training; ``loss`` is drawn heavy, its parts thin.

    ``traces`` holds per stage the arrays ``step`` and one for each part of the loss.
    """
    return {name: _loss_chart(name, trace) for name, trace in traces.items()}


def _loss_chart(name: str, trace: Mapping[str, NDArray[np.floating]]) -> Markup:
    step, loss = trace["step"], trace["loss"]
    finite = np.concatenate([values[np.isfinite(values)] for part, values in trace.items() if part != "step"] or [np.zeros(0)])
    highest = float(finite.max()) if len(finite) else 1.0
    known = loss[np.isfinite(loss)]
    told = f"from {known[0]:.3g} to {known[-1]:.3g}" if len(known) else "never a number"
    alt = f"Loss of {name} over {counted(len(step), 'step')}, {told}."
    chart = _Chart(alt, (float(step[0]), float(max(step[-1], step[0] + 1)), "step"), (0.0, highest * 1.05 or 1.0, "loss"))
    for part, values in trace.items():
        if part not in ("step", "loss"):
            # Guards are not of every step.
            shown = np.isfinite(values)
            chart.line(*_thinned(step[shown], values[shown]), "part")
    chart.line(*_thinned(step, loss), "trace heavy")
    return chart.markup()


def _thinned(step: NDArray[np.floating], values: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """No more points than there are pixels, the last among them."""
    keep = np.unique(np.append(np.arange(0, len(step), max(1, len(step) // (2 * WIDTH))), max(0, len(step) - 1)))
    return (step[keep], values[keep]) if len(step) else (step, values)


def reliability_chart(curve: Sequence[Reliability], binary: bool, unit: str = "epochs") -> Markup:
    """Share that is right against confidence, a point for each bin, larger for more epochs (or what else the ``unit`` is); the
    diagonal is what it should be.
    """
    total = sum(each.count for each in curve)
    told = ", ".join(f"{each.confidence:.2f}: {each.right:.2f}" for each in curve)
    what = f"share of positive {unit}" if binary else "share that is right"
    alt = f"Reliability curve of {total} {unit}, mean confidence and {what}: {told}."
    chart = _Chart(alt, (0.0, 1.0, "confidence of the model"), (0.0, 1.0, what))
    chart.line([0, 1], [0, 1], "reference")
    chart.line([each.confidence for each in curve], [each.right for each in curve], "trace")
    for each in curve:
        chart.dot(each.confidence, each.right, "dot", 2 + 6 * math.sqrt(each.count / total))
    return chart.markup()


def people_chart(people: Sequence[PersonFigure], name: str) -> Markup:
    """One point for each person from low to high, with the median; people of whom the figure is not defined are not shown."""
    values = [person.value for person in people if not math.isnan(person.value)]
    middle = float(np.median(values)) if values else math.nan
    span = f"from {values[0]:z.2f} to {values[-1]:z.2f}, median {middle:z.2f}" if values else "of nobody"
    lowest = min([0.0, *(math.floor(value * 5) / 5 for value in values)])
    chart = _Chart(
        f"{name} of each of {counted(len(values), 'person')}, {span}.",
        (0.0, max(len(values), 1), "people, from low to high"),
        (lowest, 1.0, name),
        x_ticks={0.5: "1", len(values) - 0.5: str(len(values))} if len(values) > 1 else {0.5: "1"},
    )
    if values:
        chart.line([0, len(values)], [middle, middle], "reference")
    for place, value in enumerate(values):
        chart.dot(place + 0.5, value, "dot", 3.5 if len(values) < 60 else 2)
    return chart.markup()


def label_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Kappa against the share of people whose labels were used: a point for each draw, a line through the means.

    ``rows`` have ``fraction`` (0 to 1) and ``kappa``, one for each draw (``seed``); a draw without a kappa is left out.
    Without any there is no picture.
    """
    points = [(float(row["fraction"]), float(row["kappa"])) for row in rows if row["kappa"] is not None]
    if not points:
        return Markup("")
    fractions = sorted({fraction for fraction, _ in points})
    means = [float(np.mean([kappa for share, kappa in points if share == fraction])) for fraction in fractions]
    told = ", ".join(f"{100 * fraction:g} %: {mean:z.2f}" for fraction, mean in zip(fractions, means, strict=True))
    low, high = math.log10(fractions[0]) - 0.1, math.log10(fractions[-1]) + 0.1
    chart = _Chart(
        f"Label curve, mean kappa by share of labelled people: {told}.",
        (low, high, "people with labels"),
        (min(0.0, *(kappa for _, kappa in points)), 1.0, "κ"),
        x_ticks={math.log10(fraction): f"{100 * fraction:g} %" for fraction in fractions},
    )
    chart.line(np.log10(fractions), means, "trace")
    for fraction, kappa in points:
        chart.dot(math.log10(fraction), kappa)
    return chart.markup()


def bland_altman_chart(found: PairedAgreement, reference: str = "human", units: str = "nights") -> Markup:
    """Difference of both against their mean, a point a night, with bias and limits of agreement (Bland and Altman 1986).

    ``reference`` is what the model is compared with, and ``units`` what a point stands for.
    """
    theirs, mine = np.asarray(found.reference), np.asarray(found.estimate)
    mean, difference = (theirs + mine) / 2, mine - theirs
    unit = f" ({found.unit})" if found.unit else ""
    bias, low, high = found.bias.value, found.low.value, found.high.value
    alt = (
        f"Bland-Altman plot of {found.n_nights} {units}, {figure_title(found.name)}: bias {format_defined(bias)}, limits "
        f"{format_defined(low)} to {format_defined(high)}{unit}."
    )
    levels = [value for value in (bias, low, high) if math.isfinite(value)]
    chart = _difference_chart(alt, mean, [*difference, *levels], unit, reference)
    named: list[float] = []
    for value, css in ((bias, "trace"), (low, "reference"), (high, "reference")):
        if math.isfinite(value):
            y = chart.y(value)
            chart.picture.line(chart.x.start, y, chart.x.stop, y, css)
            # Of lines that nearly coincide one has its number; the table has all.
            if all(abs(y - other) >= _TEXT for other in named):
                chart.picture.text(chart.x.stop, y - 3, f"{value:z.1f}", "small", "end")
                named.append(y)
    for x, y in zip(mean.tolist(), difference.tolist(), strict=True):
        chart.dot(x, y)
    return chart.markup()


def night_difference_chart(figures: Sequence[ComparedFigure]) -> Markup:
    """As Bland and Altman draw it, a point for each figure of one night in minutes, with its name.

    There are neither bias nor limits: figures of one night are not measurements of one thing.
    """
    shown = [f for f in figures if f.unit == "min" and math.isfinite(f.difference)]
    mean = np.array([(figure.model + figure.human) / 2 for figure in shown])
    told = ", ".join(f"{figure.name} {figure.difference:+z.1f}" for figure in shown)
    alt = f"Difference of model and human against their mean, in minutes: {told}."
    chart = _difference_chart(alt, mean, [figure.difference for figure in shown], " (min)", "human")
    chart.picture.line(chart.x.start, chart.y(0), chart.x.stop, chart.y(0), "reference")
    named: dict[tuple[int, int], list[str]] = {}
    for x, figure in zip(mean.tolist(), shown, strict=True):
        chart.dot(x, figure.difference)
        # Points on one place have one text, as wake and WASO of who slept at once.
        place = (round(chart.x(x)), round(chart.y(figure.difference)))
        named.setdefault(place, []).append(figure.name.replace("total sleep time", "sleep"))
    # A name lies neither on a point nor on another name; beside its own point where it can, else with a line to it.
    taken = [(x - 5.0, x + 5.0, y + 3.0) for x, y in named]
    texts = []
    for (x, y), names in named.items():
        text = ", ".join(names)
        left, base, right = _free_place(x, y, text, taken)
        taken.append((left, right, base))
        texts.append((left, base, text))
        if abs(base - 4 - y) > 1:
            chart.picture.line(x, y, left - 2 if left > x else right + 2, base - 4, "leader")
    # Above all lines.
    for left, base, text in texts:
        chart.picture.text(left, base, text, "small named")
    return chart.markup()


def _free_place(x: float, y: float, text: str, taken: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Left, base line and right of ``text`` beside the point ``x``, ``y``: the nearest place that is free."""
    # Some 7 pixels a letter.
    wide = 7.0 * len(text)
    for row in sorted(range(-18, 19), key=abs):
        for left in (x + 7 + abs(row), x - 7 - abs(row) - wide):
            if not _lies_on(y + 4 + 6 * row, left, wide, taken):
                return left, y + 4 + 6 * row, left + wide
    return x + 7, y + 4, x + 7 + wide


def _lies_on(y: float, left: float, wide: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a text of that width at that base line leaves the chart or touches one that is there."""
    if not _TOP + 8 < y < HEIGHT - _BOTTOM or left < _LEFT or left + wide > WIDTH:
        return True
    return any(abs(y - other) < 12 and left < stop and start < left + wide for start, stop, other in taken)


def _difference_chart(alt: str, mean: NDArray[np.float64], differences: Sequence[float], unit: str, reference: str) -> _Chart:
    reach = max([abs(value) for value in differences] or [1.0]) * 1.15 or 1.0
    low, high = (float(mean.min()), float(mean.max())) if len(mean) else (0.0, 1.0)
    margin = 0.08 * (high - low) or 1.0
    return _Chart(
        alt,
        (low - margin, high + margin, f"mean of model and {reference}{unit}"),
        (-reach, reach, f"model less {reference}{unit}"),
    )


def _named(low: float, high: float, most: int) -> dict[float, str]:
    return {value: f"{value:g}" for value in ticks(low, high, most)}
