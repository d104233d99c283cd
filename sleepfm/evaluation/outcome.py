"""From predictions on ``val`` and ``test`` to a package's contents: the end that the probe and the fine-tune
share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.data.dataset import Dataset
from sleepfm.data.events import scored_events
from sleepfm.data.reader import ShardReader
from sleepfm.errors import TrainingError
from sleepfm.evaluation.cards import downstream_card
from sleepfm.evaluation.events import EventAgreement, event_family, match_events, overlapping, positive_runs, timing_errors
from sleepfm.evaluation.metrics import Evaluation, Threshold, choose_threshold, evaluate
from sleepfm.evaluation.seconds import events_from_seconds
from sleepfm.evaluation.settings import DownstreamJob
from sleepfm.evaluation.tasks import TASKS, Task
from sleepfm.files import read_json, write_json
from sleepfm.inference.predict import Predictions
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream
from sleepfm.signals.annotations import Event
from sleepfm.training.stage import Export

EVALUATION_FILE = "evaluation.json"


def validation_figures(task: Task, predictions: Predictions) -> dict[str, float]:
    """``val/<figure>`` of the headline figures, without intervals; binary ones at the threshold of max F1."""
    threshold = _threshold(task, predictions)
    result = judge(task, predictions, threshold.value, resamples=0, seed=0)
    names = ("accuracy", "majority_accuracy", "kappa", "macro_f1", "auroc", "auprc")
    return {f"val/{name}": result.metrics[name].value for name in names}


def judge(task: Task, predictions: Predictions, threshold: float, resamples: int = 1000, seed: int = 0) -> Evaluation:
    """Every figure of ``predictions``; epochs without a prediction (no usable channel) are left out as
    unscored.
    """
    truth = predictions.truth.copy()
    truth[~predictions.scored] = -1
    return evaluate(
        task,
        truth,
        predictions.probability,
        predictions.subject,
        threshold=threshold,
        n_boot=resamples,
        seed=seed,
    )


def package_contents(
    job: DownstreamJob,
    module: Downstream,
    dataset: Dataset,
    folder: Path,
    validation: Predictions,
    test: Predictions | None,
    facts: dict[str, Any],
    window: int,
) -> Export:
    """Choose the threshold on ``validation``, read ``test`` once, and write predictions and figures into
    ``folder``. Without ``test`` (None) figures come without intervals and the threshold of seconds in coarser steps, since the
    training waits.

    ``facts`` go into the model card and, as they are, into ``config.yaml``; ``window`` is how many epochs the
    context sees at once.
    """
    task = TASKS[job.task]
    threshold = _threshold(task, validation)
    options = {"resamples": job.evaluate.resamples if test is not None else 0, "seed": job.evaluate.seed}
    on_val = judge(task, validation, threshold.value, **options)
    on_test = judge(task, test, threshold.value, **options) if test is not None else None
    validation.write(folder / "predictions-val.parquet")
    results = {"val": on_val.to_dict()}
    if test is not None and on_test is not None:
        test.write(folder / "predictions-test.parquet")
        results["test"] = on_test.to_dict()
    binary = task.kind == "binary"
    splits = {"val": validation} | ({"test": test} if test is not None else {})
    located = binary and validation.seconds is not None
    step = 0.02 if test is not None else 0.1
    event_threshold = best_event_threshold(dataset, task.name, validation, step) if located else threshold.value
    found = {
        split: compare_events(dataset, task.name, predictions, event_threshold) for split, predictions in splits.items() if binary
    }
    matches = {split: match for split, (match, _) in found.items()}
    events = {split: asdict(match) for split, match in matches.items()}
    timing = {split: timing_figures(errors) for split, (_, errors) in found.items()}
    content = {"facts": facts, "results": results, "events": events, "events_located": located, "event_timing": timing}
    write_json(folder / EVALUATION_FILE, content)
    config: dict[str, Any] = {
        "model": model_config(module),
        "task": task.name,
        "window": window,
        "threshold": threshold.value if binary else None,
        "threshold_rule": threshold.rule if binary else None,
        "event_threshold": event_threshold if located else None,
        "facts": facts,
    }
    metrics = _flat("val", on_val) | (_flat("test", on_test) if on_test is not None else {})
    figure = "event_f1" if located else "positive_runs_f1"
    metrics |= {f"{split}/{figure}": m.f1 for split, m in matches.items() if not math.isnan(m.f1)}
    metrics |= {f"{split}/{name}": value for split, figures in timing.items() for name, value in figures.items()}
    title = f"{task.registered_name}: {', '.join(task.classes)} of 30-s epochs"
    shown = facts | ({"threshold": f"{threshold.value:.4f} ({threshold.rule})"} if binary else {})
    return Export(config, downstream_card(title, shown, on_val, on_test), metrics)


def compare_events(
    dataset: Dataset, kind: str, predictions: Predictions, threshold: float
) -> tuple[EventAgreement, NDArray[np.float64]]:
    """Detected against scored events of the same recordings, over those whose events were scored: counts of matches, and
    onset and duration of matched events less those scored [N, 2], in seconds. What lies outside of the epochs that both scored
    counts on neither side.

    What is detected are events from the seconds of an event head, else runs of positive epochs, which are no events (the counts
    then say how far runs do for them).
    """
    total, errors = EventAgreement(0, 0, 0), [np.empty((0, 2))]
    detect = positive_runs if predictions.seconds is None else events_from_seconds
    for probability, judged, events in _nights(dataset, kind, predictions):
        detected = overlapping(detect(probability, threshold, kind), judged)
        scored = overlapping(events, judged)
        total += match_events(detected, scored)
        errors.append(timing_errors(detected, scored))
    return total, np.concatenate(errors)


def best_event_threshold(dataset: Dataset, kind: str, predictions: Predictions, step: float = 0.02) -> float:
    """The probability of a second, in steps of ``step``, from which events of ``predictions`` agree best (F1) with the scored
    ones; 0.5 where none was scored.
    """
    steps = np.arange(step, 1, step)
    f1 = [compare_events(dataset, kind, predictions, threshold)[0].f1 for threshold in steps.tolist()]
    return 0.5 if np.isnan(f1).all() or not np.nanmax(f1) else float(steps[int(np.nanargmax(f1))])


def timing_figures(errors: NDArray[np.float64]) -> dict[str, float]:
    """Mean absolute errors in seconds of onset and duration of matched events [N, 2]; none without a match."""
    if not len(errors):
        return {}
    onset, duration = np.abs(errors).mean(0).tolist()
    return {"event_onset_error_s": onset, "event_duration_error_s": duration}


def _nights(
    dataset: Dataset, kind: str, predictions: Predictions
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_], list[Event]]]:
    """Of every recording with scored events: probability (of seconds where there are, else of epochs), the epochs that both the
    scorer and the model scored, and the scored events.
    """
    reader = ShardReader(dataset)
    for record in dict.fromkeys(predictions.record):
        row = dataset.index_of(record)
        if dataset.records[row].has_events:
            events = [e for e in scored_events(dataset, reader, row) if event_family(e.type) == kind]
            own = predictions.record == record
            seconds = predictions.seconds
            judged = (predictions.truth >= 0)[own] & predictions.scored[own]
            yield (predictions.probability[own, 1] if seconds is None else seconds[own].reshape(-1)), judged, events


def read_events(folder: Path) -> dict[str, EventAgreement]:
    """The event agreement by split that :func:`package_contents` wrote into ``folder``; empty for sleep stages.

    What was compared with the scored events are events only if :func:`tells_seconds`, else runs of positive epochs.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: EventAgreement(**counts) for split, counts in _evaluation(folder)["events"].items()}


def tells_seconds(folder: Path) -> bool:
    """Whether the model that :func:`package_contents` judged tells events to the second; False where an older run does not say.

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


def _evaluation(folder: Path) -> dict[str, Any]:
    content = read_json(folder / EVALUATION_FILE)
    if content is None:
        raise TrainingError(f"{folder}: no {EVALUATION_FILE}; no probe or fine-tune has finished there")
    return dict(content)


def _threshold(task: Task, predictions: Predictions) -> Threshold:
    if task.kind != "binary":
        return Threshold(math.nan, "argmax", math.nan)
    scored = predictions.scored
    return choose_threshold(predictions.truth[scored], predictions.probability[scored, 1])


def _flat(split: str, result: Evaluation) -> dict[str, float]:
    return {f"{split}/{name}": m.value for name, m in result.metrics.items() if not math.isnan(m.value)}
