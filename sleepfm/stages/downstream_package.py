"""From predictions on ``val`` and ``test`` to a package's contents: the end that the probe and the fine-tune
share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sleepfm.data.dataset import Dataset
from sleepfm.errors import TrainingError
from sleepfm.evaluation import groups
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.prediction_figures import (
    best_event_threshold,
    compare_events,
    epoch_threshold,
    evaluate_predictions,
    timing_figures,
)
from sleepfm.evaluation.predictions import Predictions
from sleepfm.files import read_json, write_json
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream
from sleepfm.models.usage import LabelRule, Usage
from sleepfm.stages.downstream_config import DownstreamJob
from sleepfm.stages.model_cards import downstream_card
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder
from sleepfm.training.stage import Export


def package_contents(
    job: DownstreamJob,
    module: Downstream,
    dataset: Dataset,
    folder: Path,
    validation: Predictions,
    test: Predictions | None,
    facts: dict[str, Any],
    window: int,
    goes_on: Callable[[], None],
) -> Export:
    """Choose the threshold on ``validation``, read ``test`` once, and write predictions and figures into
    ``folder``. Without ``test`` (None) figures come without intervals and the threshold of seconds in coarser steps, since the
    training waits.

    ``facts`` go into the model card and, as they are, into ``config.yaml``; ``window`` is how many epochs the
    context sees at once; ``goes_on`` is called whenever this has come further.
    """
    task = TASKS[job.task]
    threshold = epoch_threshold(task, validation)
    options = {"resamples": job.evaluate.resamples if test is not None else 0, "seed": job.evaluate.seed}
    on_val = evaluate_predictions(task, validation, threshold.value, **options)
    goes_on()
    on_test = evaluate_predictions(task, test, threshold.value, **options) if test is not None else None
    goes_on()
    validation.write(RunFolder(folder).predictions("val"))
    results = {"val": on_val.to_dict()}
    if test is not None and on_test is not None:
        test.write(RunFolder(folder).predictions("test"))
        results["test"] = on_test.to_dict()
    binary = task.kind == "binary"
    splits = {"val": validation} | ({"test": test} if test is not None else {})
    by_group = {}
    for split, predictions in splits.items():
        by_group[split] = groups.evaluate_groups(
            dataset, predictions, lambda part: evaluate_predictions(task, part, threshold.value, **options)
        )
        goes_on()
    located = bool(task.event) and validation.seconds is not None
    step = 0.02 if test is not None else 0.1
    event_threshold = best_event_threshold(dataset, task.event, validation, step, goes_on) if located else threshold.value
    found = {
        split: compare_events(dataset, task.event, predictions, event_threshold)
        for split, predictions in splits.items()
        if task.event
    }
    matches = {split: match for split, (match, _) in found.items()}
    events = {split: asdict(match) for split, match in matches.items()}
    timing = {split: timing_figures(errors) for split, (_, errors) in found.items()}
    content = {"facts": facts, "results": results, "events": events, "events_located": located, "event_timing": timing}
    content["groups"] = {split: groups.to_dict(part) for split, part in by_group.items()}
    write_json(RunFolder(folder).evaluation, content)
    usage = Usage(
        task=task.name,
        classes=task.classes,
        window=window,
        threshold=threshold.value if binary else None,
        threshold_rule=threshold.rule if binary else None,
        event_threshold=event_threshold if located else None,
        resolution_s=1 if located else 30,
        label_rule=label_rule(dataset) if binary else None,
    )
    config = {"model": model_config(module), **usage.to_package(), "facts": facts}
    metrics = _flat("val", on_val) | (_flat("test", on_test) if on_test is not None else {})
    figure = "event_f1" if located else "positive_runs_f1"
    metrics |= {f"{split}/{figure}": m.f1 for split, m in matches.items() if not math.isnan(m.f1)}
    metrics |= {f"{split}/{name}": value for split, figures in timing.items() for name, value in figures.items()}
    title = f"{task.registered_name}: {', '.join(task.classes)} of {task.unit}s"
    shown = facts | ({"threshold": f"{threshold.value:.4f} ({threshold.rule})"} if binary else {})
    return Export(config, downstream_card(title, shown, on_val, on_test, by_group), metrics)


def label_rule(dataset: Dataset) -> LabelRule:
    """What labelled the epochs of ``dataset``; one that names no version has the first of its rule."""
    return LabelRule(name=dataset.config["event_rule"], version=dataset.config.get("event_rule_version", 1))


def read_events(folder: Path) -> dict[str, EventAgreement]:
    """The event agreement by split that :func:`package_contents` wrote into ``folder``; empty for sleep stages.

    What was compared with the scored events are events only if :func:`tells_seconds`, else runs of positive epochs.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: EventAgreement(**counts) for split, counts in _evaluation(folder)["events"].items()}


def tells_seconds(folder: Path) -> bool:
    """Whether the model that :func:`package_contents` describes tells events to the second; False where an older run does not
    say.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return bool(_evaluation(folder).get("events_located", False))


def read_results(folder: Path) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """The facts and the evaluations by split that :func:`package_contents` wrote into ``folder``.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    content = _evaluation(folder)
    return content["facts"], {split: Evaluation.from_dict(v) for split, v in content["results"].items()}


def read_groups(folder: Path) -> dict[str, groups.Groups]:
    """The figures of groups of people by split that :func:`package_contents` wrote into ``folder``; an older run has none.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: groups.from_dict(part) for split, part in _evaluation(folder).get("groups", {}).items()}


def _evaluation(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).evaluation
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); it is damaged: train again") from error
    if content is None:
        raise TrainingError(f"{folder}: no {path.name}; no probe or fine-tune has finished there")
    if not isinstance(content, dict) or not {"facts", "results"} <= content.keys():
        raise TrainingError(f"{path}: is not what a probe or fine-tune writes; it is damaged: train again")
    return content


def _flat(split: str, result: Evaluation) -> dict[str, float]:
    return {f"{split}/{name}": m.value for name, m in result.metrics.items() if not math.isnan(m.value)}
