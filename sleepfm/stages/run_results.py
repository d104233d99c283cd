"""What :func:`sleepfm.stages.downstream_package.package_contents` has left in the folder of a job, and the page of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleepfm.errors import TrainingError
from sleepfm.evaluation import groups
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.files import read_json
from sleepfm.reports.evaluation_page import Result, evaluation_page
from sleepfm.stages.label_curve import read_curve
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder


def run_result(folder: Path, model: str, split: str = "test", predictions: Predictions | None = None) -> Result | None:
    """All that the job in ``folder`` has found on ``split``, its label curve too; None where it has not read that split.

    Args:
        model: what the model is called.
        predictions: those of ``split``, where there are some in memory; else they are read.

    Raises:
        TrainingError: no finished downstream job wrote there, or what it wrote is damaged.
        DatasetError: its predictions cannot be read.
    """
    run = RunFolder(folder)
    facts, evaluations = read_results(folder)
    if split not in evaluations:
        return None
    event_results = read_event_results(folder)
    evaluation = evaluations[split]
    return Result(
        title=f"{folder.name}: {', '.join(TASKS[evaluation.task].classes)}",
        model=model,
        split=split,
        evaluation=evaluation,
        labelled_epochs=facts.get("labelled epochs"),
        events=read_events(folder).get(split),
        located=tells_seconds(folder),
        by_group=read_groups(folder),
        events_by_group={name: found.by_group for name, found in event_results.items()},
        event_result=event_results.get(split),
        sleep=read_sleep(folder).get(split, {}),
        leakage=facts.get("test people seen before", ""),
        predictions=Predictions.read(run.predictions(split)) if predictions is None else predictions,
        label_curve=read_curve(run.label_curve)["points"] if run.label_curve.exists() else (),
    )


def write_page(folder: Path, model: str, predictions: Predictions) -> None:
    """Write the page of what the job in ``folder`` has found on ``test`` beside its figures; arguments as :func:`run_result`.

    Raises:
        TrainingError: no finished downstream job wrote there.
        StorageError: the page cannot be written.
    """
    result = run_result(folder, model, predictions=predictions)
    assert result is not None
    evaluation_page(RunFolder(folder).evaluation_page, result)


def read_events(folder: Path) -> dict[str, EventAgreement]:
    """The event agreement by split of the job in ``folder``; empty for sleep stages.

    What was compared with the scored events are events only if :func:`tells_seconds`, else runs of positive epochs.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: EventAgreement(**counts) for split, counts in _evaluation(folder)["events"].items()}


def tells_seconds(folder: Path) -> bool:
    """Whether the model of the job in ``folder`` tells events to the second; False where an older run does not say.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return bool(_evaluation(folder).get("events_located", False))


def read_event_results(folder: Path) -> dict[str, EventResult]:
    """The figures of events by split of the job in ``folder``; empty where there are none.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: EventResult.from_dict(found) for split, found in _evaluation(folder).get("event_results", {}).items()}


def read_sleep(folder: Path) -> dict[str, dict[str, PairedAgreement]]:
    """The agreement of sleep statistics by split and figure; empty for tasks other than sleep stages.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    found = _evaluation(folder).get("sleep", {})
    return {s: {name: PairedAgreement.from_dict(each) for name, each in figures.items()} for s, figures in found.items()}


def read_groups(folder: Path) -> dict[str, groups.Groups]:
    """The figures of groups of people by split of the job in ``folder``; an older run has none.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    return {split: groups.from_dict(part) for split, part in _evaluation(folder).get("groups", {}).items()}


def read_results(folder: Path) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """The facts and the evaluations by split of the job in ``folder``.

    Raises:
        TrainingError: no finished downstream job wrote there.
    """
    content = _evaluation(folder)
    return content["facts"], {split: Evaluation.from_dict(v) for split, v in content["results"].items()}


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
