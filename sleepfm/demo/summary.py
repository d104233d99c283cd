"""The demo's report page and its closing table."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from sleepfm.data.dataset import Dataset
from sleepfm.data.format import MANIFEST_FOLDER
from sleepfm.demo.runner import Journal
from sleepfm.demo.steps import Plan
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.metrics import plain
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.files import read_json, write_json
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.subsets import ahi_subsets, predict_subsets, subset_results
from sleepfm.models.device import native_bf16
from sleepfm.reports.lineage import from_registry
from sleepfm.reports.report import NightExample, ReportData, Result, StepCost, build_report
from sleepfm.stages.run_results import run_result
from sleepfm.stages.whole_nights import ahi_of_jobs
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder
from sleepfm.training.tracking.machine import cpu_model
from sleepfm.wording import counted

SYNTHETIC_NOTE = "Synthetic nights are far easier than patients: the figures show that the chain works, not more."
# By the kind of task.
HEADLINE = {"multiclass": ("kappa", "macro_f1", "accuracy"), "binary": ("auroc", "auprc")}


def write_report(plan: Plan, journal: Journal) -> Path:
    """Write ``report/index.html`` from what the steps left behind; returns its path."""
    recording = plan.unseen_night()
    night = prepare_night(recording, plan.cohort, plan.scoring_file(recording))
    scorer = Scorer.load(plan.scoring_models() or None)
    score = scorer.score(night)
    versions = [(plan.result(name)["name"], str(plan.result(name)["version"])) for name in plan.judged]
    size = plan.config.cohort
    faults = "without faults" if size.clean else "with the faults of real ones"
    origin = f"recordings of {plan.data}" if plan.data else f"{size.subjects} synthetic nights of {size.hours:g} h {faults}"
    ahi, ahi_missing = _ahi(plan)
    # On val: the test split is read once per model.
    dataset, models = Dataset.open(plan.shards), scorer.models
    predictions = {task: predict_subsets(entry, dataset, "val", progress=_subset_done) for task, entry in models.items()}
    data = ReportData(
        title="SleepFM: from recordings to scored nights",
        summary=f"{origin}, seed {plan.seed}: shards, pretraining, probes, fine-tuning and one unseen night.",
        results=list(_results(plan)),
        traces={name: RunFolder(plan.output(name)).trace for name in [*plan.trained, *plan.judged]},
        night=NightExample(score, night, "its subject is in the test split: no model has seen it"),
        ahi=ahi,
        ahi_missing=ahi_missing,
        subsets={task: subset_results(entry, dataset, predictions[task]) for task, entry in models.items()},
        ahi_subsets=ahi_subsets(models, dataset, predictions),
        lineage=from_registry(versions),
        environment=_environment(plan),
        configuration={name: RunFolder(plan.output(name)).config.read_text() for name in [*plan.trained, *plan.judged]},
        steps=[StepCost(name, done.seconds, done.peak_bytes) for name, done in journal.steps.items()],
        notes=([SYNTHETIC_NOTE] if plan.data is None else []) + _refusals(plan),
    )
    return build_report(plan.folder / "report", data)


def _refusals(plan: Plan) -> list[str]:
    """A note for every recording that the data set refused."""
    rows = pq.read_table(plan.shards / MANIFEST_FOLDER / "quarantine.parquet").to_pylist()
    return [f"Refused: {row['source']}: {row['reason']}" for row in rows]


def print_table(plan: Plan, journal: Journal) -> None:
    """The closing table: what was reached on test subjects, and what it cost."""
    print(f"\n{'model':<24} {'figure':<10} {'test':>6}   95 % interval   majority")
    for result in _results(plan):
        for name in HEADLINE[TASKS[result.evaluation.task].kind]:
            metric = result.evaluation.metrics[name]
            majority = f"{result.evaluation.metrics['majority_accuracy'].value:8.3f}" if name == "accuracy" else ""
            interval = f"[{metric.ci_low:z.3f}, {metric.ci_high:z.3f}]"
            print(f"{result.model:<24} {name:<10} {metric.value:z6.3f}   {interval:<15} {majority}")
        if found := result.event_result:
            for name in ("f1_iou_0.2", "f1_iou_0.5"):
                metric = found.metrics[name]
                interval = f"[{metric.ci_low:z.3f}, {metric.ci_high:z.3f}]"
                print(f"{result.model:<24} {_named(found, name):<10} {metric.value:z6.3f}   {interval}")
        if result.evaluation.few_people:
            print(f"{'':<24} every {result.evaluation.few_people}")
    ahi, missing = _ahi(plan)
    print(f"AHI of test nights: {_told(ahi) if ahi is not None else f'not assessed: {missing}'}")
    night = scored_night(plan)
    if ahi_of_night := night["ahi"]:
        model, scorer = (_index(ahi_of_night[side]) for side in ("model", "scored"))
        print(f"AHI of the scored night {night['record']}: {model}, by its scorer {scorer}")
    seconds = sum(done.seconds for done in journal.steps.values())
    peak = max(done.peak_bytes for done in journal.steps.values())
    print(f"\n{len(journal.steps)} steps, {seconds / 60:.1f} minutes, peak memory {peak / 2**30:.1f} GiB")


def _named(found: EventResult, name: str) -> str:
    """Of events, or of what does for them."""
    return f"{'event' if found.located else 'run'} {name.replace('_iou_', '@')}"


def _told(ahi: PairedAgreement) -> str:
    right = f", severity right in {ahi.severity.accuracy.value:.0%}" if ahi.severity is not None and ahi.n_nights else ""
    left_out = f"; {ahi.n_left_out} left out" if ahi.n_left_out else ""
    return (
        f"mean error {ahi.mae.value:.1f}/h, bias {ahi.bias.value:+z.1f}/h, ICC {ahi.icc.value:z.2f}{right} "
        f"({counted(ahi.n_nights, 'night')} of {counted(ahi.n_subjects, 'person')}{left_out})"
    )


def scored_night(plan: Plan) -> dict[str, Any]:
    """The night that the demo scores: its ``record``, and its ``ahi`` by the model and by its scorer, per hour of sleep (None
    where breathing was not scored, or no model finds events).
    """
    (written,) = (plan.folder / "scored").glob("*/summary.json")
    content = read_json(written)
    assert content is not None  # it was found a moment ago
    return {"record": content["record"], "ahi": content.get("agreement", {}).get("ahi")}


def _index(value: float | None) -> str:
    return "not assessed" if value is None else f"{value:.1f}/h"


def _ahi(plan: Plan) -> tuple[PairedAgreement | None, str]:
    return ahi_of_jobs([plan.output(name) for name in plan.judged], Dataset.open(plan.shards))


def write_summary(plan: Plan, journal: Journal, seconds: float) -> None:
    """``summary.json``: the table's figures, what every step cost, and how long this call took with the report, in seconds."""
    figures = {
        result.model: {
            name: {"value": metric.value, "interval_95": [metric.ci_low, metric.ci_high]}
            for name, metric in result.evaluation.metrics.items()
        }
        for result in _results(plan)
    }
    steps = {name: {"seconds": done.seconds, "peak_mib": done.peak_bytes >> 20} for name, done in journal.steps.items()}
    events = {result.model: result.event_result.to_dict() for result in _results(plan) if result.event_result is not None}
    ahi, missing = _ahi(plan)
    breathing = {"events": events, "ahi": plain(ahi.to_dict()) if ahi is not None else {"not_assessed": missing}}
    breathing["scored_night"] = scored_night(plan)
    content = {"test": figures} | breathing | {"steps": steps, "seconds": round(seconds), "environment": _environment(plan)}
    write_json(plan.folder / "summary.json", content)


def _results(plan: Plan) -> Iterator[Result]:
    for name in plan.judged:
        made = plan.result(name)
        result = run_result(plan.output(name), f"{made['name']} v{made['version']}")
        if result is not None:
            yield result


def _subset_done(number: int, total: int) -> None:
    print(f"        report: {number} of {counted(total, 'night')} evaluated with every subset of modalities", flush=True)


def _environment(plan: Plan) -> dict[str, str]:
    import deepspeed
    import mlflow
    import ray
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "ray": ray.__version__,
        "mlflow": mlflow.__version__,
        "processor": f"{cpu_model()}, {'with' if native_bf16('cpu') else 'without'} bf16 instructions",
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "seed": str(plan.seed),
    }
