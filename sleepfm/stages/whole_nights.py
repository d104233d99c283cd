"""What several finished downstream jobs reach together on the same nights: the AHI of their stages and events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sleepfm.data.dataset import Dataset
from sleepfm.errors import TrainingError
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.night_agreement import ahi_agreement
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.stages.run_results import read_event_results, read_results
from sleepfm.training.folder import RunFolder


def ahi_of_jobs(
    folders: Sequence[Path], dataset: Dataset, split: str = "test", resamples: int = 1000, seed: int = 0
) -> tuple[PairedAgreement | None, str]:
    """Agreement of the AHI on ``split`` with the human's, from the predictions in ``folders``; None with the reason where
    there is no AHI.

    Of several jobs for one task the first counts that has what is needed: of sleep stages the one with the best kappa on
    ``val``.

    Raises:
        TrainingError: no finished downstream job in one of ``folders``.
    """
    stagers: list[tuple[float, Path]] = []
    finders: dict[str, tuple[Path, float]] = {}
    for folder in folders:
        _, results = read_results(folder)
        task = next(iter(results.values())).task
        if task == "stage":
            stagers.append((-results["val"].metrics["kappa"].value, folder))
        found = read_event_results(folder).get("val")
        if found is not None and found.located and task in KINDS:
            finders.setdefault(task, (folder, found.threshold))
    if not stagers:
        return None, "no model of this run tells sleep stages"
    if missing := [kind for kind in KINDS if kind not in finders]:
        told = " and ".join(missing)
        return None, f"no model of this run tells {told} to the second, and runs of positive epochs are no events"
    staging = min(stagers)[1]
    events = {kind: _predictions(folder, split) for kind, (folder, _) in finders.items()}
    thresholds = {kind: threshold for kind, (_, threshold) in finders.items()}
    return ahi_agreement(dataset, _predictions(staging, split), events, thresholds, resamples, seed), ""


def _predictions(folder: Path, split: str) -> Predictions:
    path = RunFolder(folder).predictions(split)
    if not path.exists():
        raise TrainingError(f"{path}: missing; the job there has not finished, or has not read {split}")
    return Predictions.read(path)
