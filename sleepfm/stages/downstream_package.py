"""From predictions on ``val`` and ``test`` to a package's contents: the end that the probe and the fine-tune
share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.errors import DatasetError
from sleepfm.evaluation import groups
from sleepfm.evaluation.calibration import calibrated, fit_temperature
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.metrics import Evaluation, plain
from sleepfm.evaluation.night_agreement import sleep_agreement
from sleepfm.evaluation.prediction_figures import EventThreshold, best_event_threshold, epoch_threshold, evaluate_predictions
from sleepfm.evaluation.predictions import Predictions
from sleepfm.files import write_json
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream
from sleepfm.models.usage import LabelRule, Usage
from sleepfm.registry.registry import INTERVALS
from sleepfm.stages.downstream_config import DownstreamJob
from sleepfm.stages.model_cards import downstream_card
from sleepfm.stages.run_results import write_page
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder
from sleepfm.training.stage import Export


def package_contents(
    job: DownstreamJob,
    module: Downstream,
    dataset: Dataset | Mixture,
    folder: Path,
    validation: Predictions,
    test: Predictions | None,
    facts: dict[str, Any],
    window: int,
    goes_on: Callable[[], None],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Export:
    """Fit the temperature and choose the thresholds on ``validation``, read ``test`` once, and write predictions (at the
    temperature), figures and the page of the evaluation on ``test`` into ``folder``. Without ``test`` (None) figures come without
    intervals, the threshold of seconds in coarser steps, and no page, since the training waits.

    ``facts`` go into the model card and, as they are, into ``config.yaml``; ``window`` is how many epochs the
    context sees at once; ``goes_on`` is called whenever this has come further; ``more`` is kept beside the figures.
    """
    task = TASKS[job.task]
    final = test is not None
    options = {"resamples": job.evaluate.resamples if final else 0, "seed": job.evaluate.seed}
    temperature = fit_temperature(validation.truth, validation.probability)
    splits = {
        split: calibrated(predictions, temperature.value)
        for split, predictions in {"val": validation, "test": test}.items()
        if predictions is not None
    }
    goes_on()
    threshold = epoch_threshold(task, splits["val"])
    results = {}
    for split, predictions in splits.items():
        results[split] = evaluate_predictions(task, predictions, threshold.value, **options)
        predictions.write(RunFolder(folder).predictions(split))
        goes_on()
    by_group = {}
    for split, predictions in splits.items():
        by_group[split] = groups.evaluate_groups(
            dataset, predictions, lambda part: evaluate_predictions(task, part, threshold.value, **options)
        )
        goes_on()
    located = bool(task.event) and validation.seconds is not None
    content: dict[str, Any] = {
        "facts": facts,
        "results": {split: result.to_dict() for split, result in results.items()},
        "temperature": plain(asdict(temperature)),
        "events": {},
        "events_located": located,
        "groups": {split: groups.to_dict(part) for split, part in by_group.items()},
        **more,
    }
    metrics = {name: value for split, result in results.items() for name, value in _flat(split, result).items()}
    event_threshold: EventThreshold | None = None
    if located:
        step = 0.02 if final else 0.1
        event_threshold = best_event_threshold(dataset, task.event, splits["val"], step, goes_on)
        content["event_threshold"] = plain(asdict(event_threshold))
    events: dict[str, EventResult] = {}
    if task.event:
        found = event_threshold.value if event_threshold is not None else threshold.value
        events = {
            split: EventResult.of(dataset, task.event, predictions, found, **options) for split, predictions in splits.items()
        }
        content["events"] = {split: asdict(result.matches) for split, result in events.items()}
        content["event_results"] = {split: result.to_dict() for split, result in events.items()}
        metrics |= {name: value for split, result in events.items() for name, value in result.flat(split).items()}
    if task.name == "stage":
        sleep = {split: sleep_agreement(predictions, **options) for split, predictions in splits.items()}
        content["sleep"] = {s: {name: plain(each.to_dict()) for name, each in found.items()} for s, found in sleep.items()}
    goes_on()
    write_json(RunFolder(folder).evaluation, content)
    if final:
        write_page(folder, task.registered_name, splits["test"])
        goes_on()
    binary = task.kind == "binary"
    usage = Usage(
        task=task.name,
        classes=task.classes,
        window=window,
        threshold=threshold.value if binary else None,
        threshold_rule=threshold.rule if binary else None,
        event_threshold=event_threshold.value if event_threshold is not None else None,
        event_threshold_rule=event_threshold.rule if event_threshold is not None else None,
        resolution_s=1 if located else 30,
        label_rule=label_rule(dataset) if binary else None,
        temperature=temperature.value,
    )
    config = {"model": model_config(module), **usage.to_package(), "facts": facts}
    title = f"{task.registered_name}: {', '.join(task.classes)} of {task.unit}s"
    shown = facts | ({"threshold": f"{threshold.value:.4f} ({threshold.rule})"} if binary else {})
    shown |= {"temperature": f"{temperature.value:.3f} ({temperature.rule})"}
    if event_threshold is not None:
        shown |= {"threshold of a second": f"{event_threshold.value:.2f} ({event_threshold.rule})"}
    card = downstream_card(title, shown, results["val"], results.get("test"), events, by_group)
    intervals = {name: each for split, result in results.items() for name, each in _intervals(split, result).items()}
    return Export(config, card, metrics, {INTERVALS: json.dumps(intervals)} if intervals else {})


def label_rule(data: Dataset | Mixture) -> LabelRule:
    """What labelled the epochs of ``data``; a data set that names no version has the first of its rule.

    Raises:
        DatasetError: data sets of a mixture that are labelled by different rules.
    """
    rules = {
        source.name: (source.dataset.config["event_rule"], source.dataset.config.get("event_rule_version", 1))
        for source in Mixture.of(data).sources
    }
    if len(set(rules.values())) > 1:
        told = ", ".join(f"{source}: {name} {version}" for source, (name, version) in rules.items())
        raise DatasetError(f"data.sources: events label epochs by different rules ({told}); build them with the same event_rule")
    name, version = next(iter(rules.values()))
    return LabelRule(name=name, version=version)


def _intervals(split: str, result: Evaluation) -> dict[str, list[float]]:
    """``split/figure`` to the ends of its interval, for the figures that have one."""
    bounds = {f"{split}/{name}": [round(m.ci_low, 4), round(m.ci_high, 4)] for name, m in result.metrics.items()}
    return {name: ends for name, ends in bounds.items() if not any(map(math.isnan, ends))}


def _flat(split: str, result: Evaluation) -> dict[str, float]:
    return {f"{split}/{name}": m.value for name, m in result.metrics.items() if not math.isnan(m.value)}
