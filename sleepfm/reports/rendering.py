"""Templates into pages that are one file each: pictures inside, no script, nothing fetched.

Figures are formatted with ``z``, so that what rounds to zero has no minus.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jinja2
from markupsafe import Markup

from sleepfm.evaluation.intervals import Metric
from sleepfm.reports import palette
from sleepfm.reports.night_comparison import figure_title
from sleepfm.version import __version__
from sleepfm.wording import counted

NOT_DEFINED = "not defined"


def render(template: str, **context: Any) -> str:
    """The page that ``template`` makes of ``context``; a name that it lacks is an error."""
    return _environment().get_template(template).render(version=__version__, palette=palette, **context)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Templates are compiled once in a process, for any number of nights."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sleepfm.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": counted,
        "metric": format_metric,
        "number": format_number,
        "defined": format_defined,
        "quantity": format_quantity,
        "signed": format_signed,
        "titled": figure_title,
    }
    return environment


def format_metric(metric: Metric | None, scale: float = 1.0) -> Markup:
    """``0.712`` with its interval in small type below; a dash where undefined."""
    if metric is None or math.isnan(metric.value):
        return Markup("–")
    digits = 3 if scale == 1.0 else 1
    text = Markup(f"{metric.value * scale:z.{digits}f}")
    if not math.isnan(metric.ci_low):
        bounds = f"{metric.ci_low * scale:z.{digits}f}–{metric.ci_high * scale:z.{digits}f}"
        text += Markup(f' <span class="ci">{bounds}</span>')
    return text


def format_quantity(metric: Metric | None, digits: int = 1) -> Markup:
    """A figure with a unit, and its interval in small type; a dash where undefined."""
    if metric is None or math.isnan(metric.value):
        return Markup("–")
    text = Markup(f"{metric.value:z.{digits}f}")
    if not math.isnan(metric.ci_low):
        text += Markup(f' <span class="ci">{metric.ci_low:z.{digits}f} to {metric.ci_high:z.{digits}f}</span>')
    return text


def format_number(value: float | None, digits: int = 1) -> str:
    """``value`` with ``digits`` decimals, a dash for nan or nothing."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}"


def format_defined(value: float, digits: int = 1) -> str:
    """``value`` with ``digits`` decimals, "not defined" for nan."""
    return NOT_DEFINED if math.isnan(value) else f"{value:z.{digits}f}"


def format_signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, a dash for nan."""
    return "–" if math.isnan(value) else f"{value:+z.{digits}f}"
