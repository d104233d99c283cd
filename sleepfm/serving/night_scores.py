"""Stages and events of nights, by a downstream model or a scorer that MLflow loads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.evaluation.events import event_family
from sleepfm.serving.night_model import NightModel, read_night
from sleepfm.signals.scorings.free_text import without_texts
from sleepfm.signals.scorings.scoring import Event


class NightScores(NightModel):
    """Input and output as in the model's signature; ``docs/scoring.md`` says what they mean."""

    def load(self, folder: Path) -> Callable[[str, str], dict[str, Any]]:
        import mlflow

        from sleepfm.inference.scorer import Scorer
        from sleepfm.models.device import choose_device

        scorer = Scorer.load([folder], mlflow.get_registry_uri(), choose_device("auto"))

        def row(path: str, cohort: str) -> dict[str, Any]:
            night, start = read_night(path, cohort)
            return {"start": start} | plain_score(scorer.score(night))

        return row


def plain_score(score: Any) -> dict[str, Any]:
    """A :class:`~sleepfm.inference.night_score.NightScore` in JSON types, without any text of the recording.

    ``stages`` ([E], -1 unscored) and ``hypnodensity`` ([E][5], null unscored) are null without a model of stages, ``events`` and
    ``positive_runs`` without one that tells them; ``probability`` is of an event in each epoch, by task. Undefined figures are
    null.
    """
    staged = "stage" in score.models
    located, apart = set(score.event_threshold), set(score.threshold) - set(score.event_threshold)
    events = [event for event in score.events if event_family(event.type) not in score.without_evidence]
    return _defined(
        {
            "record": score.record,
            "stages": score.stages.tolist() if staged else None,
            "hypnodensity": _rows(score.hypnodensity) if staged else None,
            "events": [_event(event) for event in events] if located else None,
            "positive_runs": [_event(run) for run in score.runs] if apart else None,
            "probability": {task: values.tolist() for task, values in score.probability.items()},
            "sleep": asdict(score.statistics) if staged else {},
            "breathing": score.breathing.to_json(),
            "models": dict(score.models),
            "not_assessed": list(score.without_evidence),
            "warnings": [without_texts(text) for text in score.warnings],
        }
    )


def _event(event: Event) -> dict[str, Any]:
    return {"type": event.type, "onset": float(event.onset), "duration": float(event.duration)}


def _rows(probability: NDArray[np.float64]) -> list[list[float] | None]:
    return [None if np.isnan(row).any() else row.tolist() for row in probability]


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
