"""From what a probe of recordings says on ``val`` and ``test`` to the contents of its package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation, plain
from sleepfm.evaluation.paired import paired_agreement
from sleepfm.evaluation.prediction_figures import epoch_threshold, evaluate_predictions, validation_figures
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.regression import FIGURES, Regression, evaluate_regression
from sleepfm.files import atomic_path, write_json
from sleepfm.models.build import model_config
from sleepfm.models.recording import RecordingModel
from sleepfm.reports.evaluation_page import RegressionResult, Result, evaluation_page
from sleepfm.stages.downstream_config import RecordingProbeConfig
from sleepfm.tasks import RecordingTask
from sleepfm.training.folder import RunFolder
from sleepfm.training.stage import Export

_HEADLINES = ("accuracy", "balanced_accuracy", "majority_accuracy", "kappa", "macro_f1", "auroc", "auprc", "brier", "ece")


def recording_figures(task: RecordingTask, predictions: Predictions, baseline: float) -> dict[str, float]:
    """Headline figures on ``val``, without intervals."""
    if task.classes:
        return validation_figures(task, predictions)
    result = _regression(task, predictions, baseline, 0, 0)
    return {name: result.metrics[name.removeprefix("val/")].value for name in FIGURES}


def recording_contents(
    job: RecordingProbeConfig,
    task: RecordingTask,
    module: RecordingModel,
    folder: Path,
    validation: Predictions,
    test: Predictions | None,
    facts: dict[str, Any],
    baseline: float,
) -> Export:
    """Choose the threshold of two classes on ``validation``, read ``test`` once, and write predictions and figures.

    They are written into ``folder``, with the page of the evaluation on ``test``. Without ``test`` (None) figures come without
    intervals, and no page, since the training waits.
    """
    splits = {split: found for split, found in {"val": validation, "test": test}.items() if found is not None}
    resamples = job.evaluate.resamples if test is not None else 0
    results: dict[str, Evaluation | Regression] = {}
    threshold = epoch_threshold(task, validation) if task.classes else None
    for split, predictions in splits.items():
        if threshold is not None:
            results[split] = evaluate_predictions(task, predictions, threshold.value, resamples, job.evaluate.seed)
        else:
            results[split] = _regression(task, predictions, baseline, resamples, job.evaluate.seed)
        _write(RunFolder(folder).predictions(split), task, predictions)
    kind = "results" if task.classes else "regression"
    written = {split: plain(result.to_dict()) for split, result in results.items()}
    write_json(RunFolder(folder).evaluation, {"facts": facts, "results": {}, "events": {}} | {kind: written})
    if test is not None:
        evaluation_page(RunFolder(folder).evaluation_page, _result(task, results["test"], test, facts))
    usage: dict[str, Any] = {"task": task.name, "classes": list(task.classes), "unit": task.unit}
    shown = dict(facts)
    if threshold is not None and task.kind == "binary":
        usage |= {"threshold": threshold.value, "threshold_rule": threshold.rule}
        shown["threshold"] = f"{threshold.value:.4f} ({threshold.rule})"
    metrics = {
        f"{split}/{name}": metric.value
        for split, result in results.items()
        for name, metric in result.metrics.items()
        if not math.isnan(metric.value)
    }
    return Export({"model": model_config(module), "usage": usage, "facts": facts}, _card(task, shown, results), metrics)


def _result(
    task: RecordingTask, found: Evaluation | Regression, test: Predictions, facts: dict[str, Any]
) -> Result | RegressionResult:
    """What the page shows of ``test``."""
    leakage = facts["test people seen before"]
    if isinstance(found, Evaluation):
        title = f"{task.name}: {', '.join(task.classes)}"
        return Result(title, task.registered_name, "test", found, leakage=leakage, predictions=test)
    paired = paired_agreement(task.name, test.truth, test.probability[:, 0], test.subject.tolist(), unit=task.unit, n_boot=0)
    return RegressionResult(f"{task.name} of a recording", task.registered_name, "test", found, paired, leakage)


def _regression(task: RecordingTask, predictions: Predictions, baseline: float, resamples: int, seed: int) -> Regression:
    estimate = predictions.probability[:, 0]
    return evaluate_regression(
        task.name,
        predictions.truth,
        estimate,
        predictions.subject.tolist(),
        baseline,
        unit=task.unit,
        n_boot=resamples,
        seed=seed,
    )


def _write(path: Path, task: RecordingTask, predictions: Predictions) -> None:
    """One Parquet row a recording: ``record``, ``subject``, ``truth``, and ``p0`` and so on or ``estimate``."""
    import pandas as pd

    names = [f"p{number}" for number in range(len(task.classes))] or ["estimate"]
    table: dict[str, Any] = {"record": predictions.record, "subject": predictions.subject, "truth": predictions.truth}
    with atomic_path(path) as temporary:
        columns = {name: predictions.probability[:, number] for number, name in enumerate(names)}
        pd.DataFrame(table | columns).to_parquet(temporary, index=False)


def _card(task: RecordingTask, facts: dict[str, Any], results: dict[str, Evaluation | Regression]) -> str:
    told = f"{', '.join(task.classes)}" if task.classes else f"a number in {task.unit or 'its own unit'}"
    lines = [f"# {task.registered_name}: {told} of recordings", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Figures", "", f"| figure | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    names = [name for name in results["val"].metrics if not task.classes or name in _HEADLINES]
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(result.metrics[name]) for result in results.values())} |")
    few = [f"On `{split}`, every {result.few_people}." for split, result in results.items() if result.few_people]
    baseline = (
        "`majority_accuracy` is what always naming the commonest class reaches."
        if task.classes
        else "`baseline_mae` is of always naming the median of the recordings that were learnt from."
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Values with 95 % intervals over resamples of people. Selected on `val`; `test` was read once. {baseline}",
            *few,
            "",
            "## Limits",
            "",
            "For research; not a medical device. One value for a whole recording; people unlike those of the training cohort "
            "(other montage, age, disorder) need their own evaluation. The model may tell what goes with the value in its "
            "cohort, such as a medicine or a device, and not the value.",
            "",
        ]
    )


def _cell(metric: Metric) -> str:
    if math.isnan(metric.value):
        return f"undefined ({metric.note})"
    return f"{metric.value:z.3f}" + ("" if math.isnan(metric.ci_low) else f" ({metric.ci_low:z.3f}–{metric.ci_high:z.3f})")
