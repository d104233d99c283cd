"""The text of a downstream model's ``MODEL_CARD.md``: what it is, how it was made, what it reached, where it
ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation

HEADLINES = (
    "accuracy",
    "balanced_accuracy",
    "majority_accuracy",
    "kappa",
    "macro_f1",
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "sensitivity_at_specificity",
    "brier",
    "ece",
)


def downstream_card(
    title: str,
    facts: Mapping[str, object],
    validation: Evaluation,
    test: Evaluation | None,
    events: Mapping[str, EventResult] = MappingProxyType({}),
) -> str:
    """Markdown with a table of ``facts`` and one of figures, with those of ``events`` by split; intervals are over resamples of
    subjects.
    """
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Figures", "", "| figure | val | test |", "|---|---|---|"]
    for name in HEADLINES:
        if name in validation.metrics:
            held = _cell(test.metrics[name]) if test else "–"
            lines.append(f"| {name} | {_cell(validation.metrics[name])} | {held} |")
    lines += _of_events(events)
    judged = {"val": validation} | ({"test": test} if test else {})
    few = [f"On `{name}`, every {each.few_people}." for name, each in judged.items() if each.few_people]
    shares = ", ".join(f"{name} {share:.3f}" for name, share in validation.prevalence.items())
    lines += [
        "",
        "Values with 95 % intervals over resamples of subjects. The model and, for binary tasks, its threshold "
        "were selected on `val`; `test` was read once. `majority_accuracy` is what always naming the commonest "
        f"class reaches. Prevalence on `val`: {shares}.",
        *few,
        "",
        "## Limits",
        "",
        "For research; not a medical device. One prediction for each 30-s epoch; recordings unlike the "
        "training cohort (other montage, age, disorder) need their own evaluation.",
        "",
    ]
    return "\n".join(lines)


def _of_events(events: Mapping[str, EventResult]) -> list[str]:
    """Rows of figures of events, or of the runs of positive epochs that do for them."""
    if not events:
        return []
    first = next(iter(events.values()))
    what = "events" if first.located else "positive runs, which are no events"
    rows = [(f"{what}: {name}", {split: each.metrics[name] for split, each in events.items()}) for name in first.metrics]
    rows += [(f"{first.kind} per hour, mean error", {split: each.index.mae for split, each in events.items()})]
    rows += [(f"{first.kind} per hour, ICC(2,1)", {split: each.index.icc for split, each in events.items()})]
    return [f"| {name} | {_cell(row['val'])} | {_cell(row['test']) if 'test' in row else '–'} |" for name, row in rows]


def _cell(metric: Metric) -> str:
    if math.isnan(metric.value):
        return f"undefined ({metric.note})"
    if math.isnan(metric.ci_low):
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.ci_low:.3f}–{metric.ci_high:.3f})"
