"""The page of one scored night, for a clinician first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm.constants import STAGE_NAMES
from sleepfm.evaluation.breathing import KINDS
from sleepfm.files import write_atomic
from sleepfm.reports.charts import confusion_chart, night_difference_chart
from sleepfm.reports.event_pages import event_pages
from sleepfm.reports.night_comparison import agreement_with, compared_figures, has_human_scoring
from sleepfm.reports.night_drawing import night_drawing, stage_legend
from sleepfm.reports.night_facts import NightExample, page_facts
from sleepfm.reports.rendering import render
from sleepfm.reports.signal_page import page_caption, signal_page


def night_page(path: Path, example: NightExample) -> None:
    """Write the report of one night to ``path``, whole or not at all."""
    events = event_pages(example)
    runs = all(kind not in example.score.event_threshold for kind in KINDS)
    page = render(
        "night.html",
        title=example.score.record,
        facts=night_context(example),
        events=events,
        what="runs of positive epochs" if runs else "events",
    )
    write_atomic(path, page)


def night_context(example: NightExample) -> dict[str, Any]:
    """What the templates of ``night_parts.html`` show of a night, pictures among it."""
    score, night = example.score, example.prepared
    facts = page_facts(example) | {
        "legend": stage_legend(),
        "overview": night_drawing(example),
        "page": signal_page(example),
        "page_caption": page_caption(example),
        "agreement": [],
        "compared": (),
        "confusion": "",
        "differences": "",
    }
    if not has_human_scoring(night):
        return facts
    compared = compared_figures(score, night)
    facts |= {"agreement": _agreement(agreement_with(score, night)), "compared": compared}
    both = (score.stages >= 0) & (night.stage >= 0)
    if both.any():
        counts = np.zeros((len(STAGE_NAMES), len(STAGE_NAMES)), int)
        np.add.at(counts, (night.stage[both], score.stages[both]), 1)
        facts["confusion"] = confusion_chart(counts, STAGE_NAMES)
    if sum(figure.unit == "min" and math.isfinite(figure.difference) for figure in compared) > 1:
        facts["differences"] = night_difference_chart(compared)
    return facts


def _agreement(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table: stages, then each family of events."""
    rows: list[tuple[str, str]] = []
    if stage := found.get("stage"):
        for name, title in (("kappa", "Stages: Cohen's κ"), ("accuracy", "Stages: accuracy"), ("macro_f1", "Stages: macro-F1")):
            rows.append((title, _told(stage[name])))
    for kind in (kind for kind in (*KINDS, "arousal") if kind in found):
        family, what = found[kind], kind.capitalize()
        if family["positive_runs"]:
            what += ", runs of positive epochs"
        rows.append((f"{what}: F1 at 20 % overlap", _told(family["f1"])))
        rows.append((f"{what}: matched, missed, extra", f"{family['matched']}, {family['missed']}, {family['false']}"))
    return rows


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:z.2f}"
