"""The page of one evaluation: what a model reached on a split, how sure it was, on whom, and with how many labels.

What a model names are classes, of epochs or of whole recordings (:class:`Result`), or a number of a recording
(:class:`RegressionResult`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.groups import FEW, EventGroups, Groups, group_rows
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.regression import Regression
from sleepfm.evaluation.reliability import HEADLINE, person_figures, reliability
from sleepfm.files import write_atomic
from sleepfm.reports.charts import bland_altman_chart, confusion_chart, label_chart, people_chart, reliability_chart
from sleepfm.reports.night_comparison import figure_title
from sleepfm.reports.rendering import render
from sleepfm.tasks import RECORDING_TASKS, TASKS, Classes

FIGURE_NAMES = {"kappa": "Cohen's κ", "auroc": "AUROC"}


@dataclass(frozen=True)
class Result:
    """What one model reached on one split.

    ``labelled_epochs`` is how many labelled epochs its head was trained on; ``events`` compares what the model found with the
    scored events of the same recordings: events if ``located``, else runs of positive epochs. ``event_result`` says more of them,
    with intervals; ``sleep`` compares sleep statistics night by night; ``leakage`` says whether a person of the split was seen
    before; ``by_group`` has figures of groups of people, and ``events_by_group`` their events, by split. ``predictions`` of the
    split give the reliability curve and the figures of each person; ``label_curve`` has what other shares of the labels gave, in
    rows of ``fraction``, ``seed`` and ``kappa``.
    """

    title: str
    model: str
    split: str
    evaluation: Evaluation
    labelled_epochs: int | None = None
    events: EventAgreement | None = None
    located: bool = False
    by_group: Mapping[str, Groups] = field(default_factory=dict)
    events_by_group: Mapping[str, EventGroups] = field(default_factory=dict)
    event_result: EventResult | None = None
    sleep: Mapping[str, PairedAgreement] = field(default_factory=dict)
    leakage: str = ""
    predictions: Predictions | None = None
    label_curve: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class RegressionResult:
    """How near one model came on one split to a number of each recording; ``paired`` has both of every recording."""

    title: str
    model: str
    split: str
    regression: Regression
    paired: PairedAgreement
    leakage: str = ""


def evaluation_page(path: Path, result: Result | RegressionResult) -> None:
    """Write the page of ``result`` to ``path``, whole or not at all."""
    if isinstance(result, RegressionResult):
        chart = bland_altman_chart(result.paired, "known", "recordings") if result.paired.n_nights else ""
        write_atomic(path, render("regression.html", result=result, chart=chart))
    else:
        write_atomic(path, render("evaluation.html", **evaluation_context(result)))


def page_name(result: Result) -> str:
    """File name of its page in a run's report."""
    return f"evaluation-{re.sub(r'[^a-z0-9]+', '-', f'{result.model} {result.split}'.lower()).strip('-')}.html"


def evaluation_context(result: Result) -> dict[str, Any]:
    """What the templates show of a result."""
    evaluation = result.evaluation
    of_epochs = evaluation.task in TASKS
    task: Classes = TASKS[evaluation.task] if of_epochs else RECORDING_TASKS[evaluation.task]
    key, unit = HEADLINE[task.kind], "epochs" if of_epochs else "recordings"
    context: dict[str, Any] = {
        "result": result,
        "unit": unit,
        "key": key,
        "key_name": FIGURE_NAMES[key],
        "confusion": confusion_chart(evaluation.confusion, evaluation.classes),
        "groups": list(group_rows(result.by_group, result.events_by_group)),
        "few": FEW,
        "reliability": "",
        "people": "",
        "unknown_people": 0,
        "labels": label_chart(result.label_curve),
        "index": "",
        "sleep_charts": [],
    }
    if result.predictions is not None:
        curve = reliability(task, result.predictions)
        people = person_figures(task, result.predictions, evaluation.threshold or 0.5)
        defined = [person for person in people if person.value == person.value]
        context["reliability"] = reliability_chart(curve, task.kind == "binary", unit) if curve else ""
        context["people"] = people_chart(people, FIGURE_NAMES[key]) if defined else ""
        context["unknown_people"] = len(people) - len(defined)
    if result.event_result is not None and result.event_result.index.n_nights:
        context["index"] = bland_altman_chart(result.event_result.index)
    context["sleep_charts"] = [
        (_capital(figure_title(name)), bland_altman_chart(found))
        for name, found in result.sleep.items()
        if name in ("total_sleep_time", "waso") and found.n_nights
    ]
    return context


def _capital(text: str) -> str:
    """With a capital letter in front; those behind it stay as they are."""
    return text[:1].upper() + text[1:]
