"""The report of a run: ``index.html`` and a page for each evaluation, each one file with its pictures, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sleepfm.errors import DatasetError
from sleepfm.evaluation.paired import SEVERITIES, PairedAgreement
from sleepfm.files import write_atomic
from sleepfm.reports.charts import bland_altman_chart, loss_charts
from sleepfm.reports.evaluation_page import Result, evaluation_context, evaluation_page, page_name
from sleepfm.reports.lineage import Lineage, as_list, to_svg
from sleepfm.reports.night_facts import NightExample
from sleepfm.reports.night_page import night_context, night_page
from sleepfm.reports.rendering import render
from sleepfm.training.tracking.trace import read_trace

if TYPE_CHECKING:
    from sleepfm.inference.subsets import SubsetAhi, SubsetResult

__all__ = ["NightExample", "ReportData", "Result", "StepCost", "build_report", "loss_columns"]

NIGHT_PAGE = "night.html"


@dataclass(frozen=True)
class StepCost:
    """What one step of the run took."""

    name: str
    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a run's report shows. A section whose field is empty is left out.

    Args:
        title: headline; ``summary``: one sentence under it; ``notes``: what a reader must know to read the
            figures right.
        results: one per model and split, in the order shown.
        traces: stage of training to its ``trace.jsonl``.
        night: the example night.
        ahi: agreement of the nights' AHI, of the models' own stages and events; ``ahi_missing`` says why there is none.
        subsets: by task, its figures for each subset of modalities; ``ahi_subsets`` the agreement of the AHI for each.
        lineage: from shards to models.
        environment: name to value (versions, processor, seed …); ``configuration``: name to YAML text.
        steps: cost of each step.
    """

    title: str
    summary: str = ""
    results: Sequence[Result] = ()
    traces: Mapping[str, Path] = field(default_factory=dict)
    night: NightExample | None = None
    ahi: PairedAgreement | None = None
    ahi_missing: str = ""
    subsets: Mapping[str, Sequence[SubsetResult]] = field(default_factory=dict)
    ahi_subsets: Sequence[SubsetAhi] = ()
    lineage: Lineage | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[StepCost] = ()
    notes: Sequence[str] = ()


def build_report(out_dir: Path, data: ReportData) -> Path:
    """Write ``out_dir/index.html``, a page for each result (``evaluation-MODEL-SPLIT.html``) and ``night.html`` of the example
    night beside it, each whole or not at all; returns the path of the first.

    Raises:
        DatasetError: a trace that is not JSON lines with a ``step``.
    """
    traces = {name: loss_columns(path) for name, path in data.traces.items()}
    page = render(
        "report.html",
        data=data,
        losses=loss_charts(traces),
        results=[evaluation_context(result) for result in data.results],
        pages=[page_name(result) for result in data.results],
        facts=night_context(data.night) if data.night else None,
        night_page=NIGHT_PAGE,
        lineage=Markup(to_svg(data.lineage)) if data.lineage else "",
        lineage_list=as_list(data.lineage) if data.lineage else [],
        bland_altman=bland_altman_chart(data.ahi) if data.ahi is not None and data.ahi.n_nights else "",
        severities=SEVERITIES,
    )
    for result in data.results:
        evaluation_page(out_dir / page_name(result), result)
    if data.night is not None:
        night_page(out_dir / NIGHT_PAGE, data.night)
    # Last, since it links to the others.
    write_atomic(out_dir / "index.html", page)
    return out_dir / "index.html"


def loss_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a training trace: ``step``, ``loss`` and the parts of the loss, nan at steps that had no such part.

    Raises:
        DatasetError: no rows, or rows without ``step`` and ``loss``.
    """
    rows = read_trace(path)
    if not rows or any("step" not in row or "loss" not in row for row in rows):
        raise DatasetError(f"{path}: expected the trace of a training run, rows with 'step' and 'loss'")
    columns = {name: [row[name] for row in rows] for name in ("step", "loss")}
    names = dict.fromkeys(part for row in rows for part in row.get("parts", {}))
    columns |= {part: [row.get("parts", {}).get(part, math.nan) for row in rows] for part in names}
    return {name: np.array(values, float) for name, values in columns.items()}
