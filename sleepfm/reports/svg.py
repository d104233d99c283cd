"""Pictures as SVG text that stands inside an HTML page.

Every colour is a class of the page's style sheet (``templates/style.html``), so that one drawing serves a light page, a dark one
and paper. A picture is drawn once for a wide page and once for a narrow one, with text of one size; the style sheet shows the one
that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

# Pixels that a picture is drawn for: beside the margins of a page of 1120 and of 390.
WIDE, NARROW = 1064, 358
# What :func:`trace` writes of each step down, since formatting hundreds of thousands of them takes longer than all else.
_STEPS = {step: f"1 {step}".replace(" -", "-") for step in range(-200, 201)}


class Picture:
    """An ``<svg>`` element of ``width`` by ``height`` pixels; ``alt`` says in words and numbers what it shows."""

    def __init__(self, width: float, height: float, alt: str) -> None:
        self.width, self.height, self.alt = width, height, alt
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, css: str) -> None:
        """A rectangle with its upper left corner at ``x``, ``y``."""
        self._parts.append(f'<rect class="{css}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>')

    def line(self, x0: float, y0: float, x1: float, y1: float, css: str) -> None:
        """A straight line."""
        self.path(f"M{_n(x0)} {_n(y0)}L{_n(x1)} {_n(y1)}", css)

    def path(self, data: str, css: str, transform: str = "") -> None:
        """A path with the commands ``data``; nothing if there are none."""
        if data:
            moved = f' transform="{transform}"' if transform else ""
            self._parts.append(f'<path class="{css}"{moved} d="{data}"/>')

    def circle(self, x: float, y: float, radius: float, css: str) -> None:
        """A disc around ``x``, ``y``."""
        self._parts.append(f'<circle class="{css}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>')

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start", turned: bool = False) -> None:
        """``text`` on the base line ``y``; ``turned`` reads from below."""
        told = f' class="{css}"' if css else ""
        told += f' text-anchor="{anchor}"' if anchor != "start" else ""
        told += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{told}>{escape(text)}</text>')

    def markup(self) -> Markup:
        """The element."""
        head = (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" height="{_n(self.height)}" '
            f'role="img" aria-label="{escape(self.alt)}">'
        )
        return Markup(head + "".join(self._parts) + "</svg>")


def for_both(draw: Callable[[int], Picture]) -> Markup:
    """What ``draw`` makes for a wide and for a narrow page, of which the style sheet shows one."""
    wide, narrow = draw(WIDE).markup(), draw(NARROW).markup()
    return Markup('<div class="on-wide">') + wide + Markup('</div><div class="on-narrow">') + narrow + Markup("</div>")


class Scale:
    """A linear map of [``low``, ``high``] onto pixels [``start``, ``stop``]."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high, self.start, self.stop = low, high, start, stop
        self._slope = (stop - start) / (high - low) if high != low else 0.0

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        return self.start + (value - self.low) * self._slope

    def of(self, values: ArrayLike) -> NDArray[np.float64]:
        """Pixels of ``values``, of the same shape."""
        return self.start + (np.asarray(values, dtype=float) - self.low) * self._slope


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round values (1, 2 or 5 times a power of ten apart) within [``low``, ``high``]."""
    if not high > low or most < 1:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        power * factor
        for factor in (1, 2, 5, 10, 20)
        if math.floor(high / (power * factor)) - math.ceil(low / (power * factor)) < most
    )
    return [round(step * number, 10) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def polyline(x: ArrayLike, y: ArrayLike) -> str:
    """Commands of a line through ``x`` [N], ``y`` [N] in pixels, to a tenth; a nan interrupts it."""
    across, down = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    there = np.isfinite(down)
    commands = []
    for start, stop in _stretches(there):
        points = zip(across[start:stop].tolist(), down[start:stop].tolist(), strict=True)
        commands.append("M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points))
        if stop - start == 1:
            commands.append("h.1")
    return "".join(commands)


def trace(values: ArrayLike, height: int) -> str:
    """Commands of a line through ``values`` [N] one unit apart; 0 is at the bottom of ``height`` whole units, 1 at the top.

    It is kept short, for hundreds of pictures in one page: whole units, relative to the point before. A nan interrupts it.
    """
    shares = np.asarray(values, dtype=float)
    level = np.round((1 - np.clip(np.nan_to_num(shares), 0, 1)) * height).astype(int)
    commands = []
    for start, stop in _stretches(np.isfinite(shares)):
        commands.append(f"M{start} {level[start]}l")
        commands.append(_joined(np.diff(level[start:stop]).tolist()))
    return "".join(commands)


def envelope(x: Scale, y: Scale, seconds: NDArray[np.floating], columns: int) -> str:
    """Commands of a closed shape between the lowest and highest of ``seconds`` [S] in each of ``columns``; nan interrupts it."""
    size = max(1, math.ceil(len(seconds) / columns))
    padded = np.concatenate([seconds, np.full(-len(seconds) % size, np.nan)]).reshape(-1, size)
    there = np.isfinite(padded).any(axis=1)
    low = np.where(np.isfinite(padded), padded, np.inf).min(axis=1, initial=np.inf)
    high = np.where(np.isfinite(padded), padded, -np.inf).max(axis=1, initial=-np.inf)
    commands = []
    for start, stop in _stretches(there):
        across = x.of((np.arange(start, stop) + 0.5) * size)
        upper, lower = y.of(high[start:stop]) - 0.5, y.of(low[start:stop]) + 0.5
        points = [*zip(across, upper, strict=True), *zip(across[::-1], lower[::-1], strict=True)]
        commands.append("M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points) + "Z")
    return "".join(commands)


def bars(spans: Iterable[tuple[float, float]], y: float, height: float, least: float = 1.0) -> str:
    """Commands of a bar for each of ``spans`` (left and right pixel), at least ``least`` wide."""
    return "".join(f"M{_n(left)} {_n(y)}h{_n(max(right - left, least))}v{_n(height)}H{_n(left)}z" for left, right in spans)


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _joined(steps: Sequence[int]) -> str:
    """Steps to the right by one and down by each of ``steps``."""
    return " ".join([_STEPS[step] for step in steps]) or "0 0"


def _n(value: float) -> str:
    """A number of pixels, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
