"""What the built-in scorer is worth on people whom it was not trained on, drawn from other ranges than those who trained it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation, plain
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.inference.predict import predict
from sleepfm.inference.task_model import TaskModel
from sleepfm.tasks import TASKS


def stage_figures(package: Path, shards: Path) -> dict[str, Any]:
    """Kappa, accuracy, macro F1 with intervals, and the recall of each stage."""
    entry = TaskModel.load(package)
    predictions = predict(entry.model, Dataset.open(shards), "test", window=entry.usage.window)
    found = evaluate_predictions(TASKS[entry.task], predictions, math.nan)
    return {
        "epochs": found.n_epochs,
        "people": found.n_subjects,
        **{name: _rounded(found.metrics[name]) for name in ("kappa", "accuracy", "macro_f1")},
        "recall": recalls(found),
    }


def recalls(found: Evaluation) -> dict[str, float | None]:
    """The recall of each class, rounded; None of one that nobody scored."""
    return {name: None if recall is None else round(recall, 3) for name, recall in found.recall.items()}


def event_figures(package: Path, shards: Path) -> dict[str, Any]:
    """F1 of events at an overlap of 20 %, and how far events per hour of sleep lie from the scored ones."""
    entry, dataset = TaskModel.load(package), Dataset.open(shards)
    threshold = entry.usage.threshold
    assert threshold is not None, "tasks about events have one"
    found = EventResult.of(dataset, entry.task, predict(entry.model, dataset, "test", window=entry.usage.window), threshold)
    index = {name: _rounded(getattr(found.index, name)) for name in ("bias", "mae", "icc")}
    return {"nights": found.n_nights, "f1": round(found.matches.f1, 3), **index}


def _rounded(metric: Metric) -> dict[str, Any]:
    known = {name: value for name, value in plain(asdict(metric)).items() if value not in (None, "")}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in known.items()}
