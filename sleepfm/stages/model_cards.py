"""The text of a downstream model's ``MODEL_CARD.md``: what it is, how it was made, what it reached, where it
ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.groups import FEW, Groups, group_rows
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
    by_group: Mapping[str, Groups] = MappingProxyType({}),
) -> str:
    """Markdown with a table of ``facts``, one of figures, with those of ``events`` by split, and one of figures by group of
    people, with F1 and counts of ``events``; intervals are over resamples of subjects.
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
        *_by_group(by_group, "auroc" if validation.threshold is not None else "kappa", events),
        "## Limits",
        "",
        "For research; not a medical device. One prediction for each 30-s epoch; recordings unlike the "
        "training cohort (other montage, age, disorder) need their own evaluation.",
        "",
    ]
    return "\n".join(lines)


def _by_group(by_group: Mapping[str, Groups], figure: str, events: Mapping[str, EventResult]) -> list[str]:
    lines = ["## By group of people", ""]
    rows = list(group_rows(by_group, {split: each.by_group for split, each in events.items()}))
    if not rows:
        return [*lines, "Age, sex and AHI of the people are not known to the data set.", ""]
    splits = list(by_group)
    titles = ["people", figure]
    if events:
        what = "events" if next(iter(events.values())).located else "positive runs"
        titles.append(f"F1 of {what} (matched, missed, false)")
    lines.append(f"| | group | {' | '.join(f'{split}: {title}' for split in splits for title in titles)} |")
    lines.append(f"|---|---|{'---|' * len(titles) * len(splits)}")
    for row in rows:
        cells = []
        for split in splits:
            metrics = row.figures.get(split)
            cells += [row.told(split), _cell(metrics[figure]) if metrics else "–"]
            if events:
                cells.append(row.told_events(split))
        lines.append(f"| {row.grouping} | {row.group} | {' | '.join(cells)} |")
    told = (
        f"What is known of people is from the tables of their cohorts, the AHI by each cohort's own rule. Fewer than {FEW} people"
    )
    return [*lines, "", f"{told} tell little of others.", ""]


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
        return f"{metric.value:z.3f}"
    return f"{metric.value:z.3f} ({metric.ci_low:z.3f}–{metric.ci_high:z.3f})"
