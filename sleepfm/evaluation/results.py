"""The files of one scored night."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES
from sleepfm.evaluation.events import AHI_DEFINITION, event_family, match_events
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.report import NightExample, figure_bytes, night_page
from sleepfm.evaluation.tasks import TASKS
from sleepfm.files import write_json
from sleepfm.scoring import NightScore
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.version import __version__


def write_night(folder: Path, score: NightScore, night: PreparedRecording) -> None:
    """Write ``stages.csv``, ``hypnodensity.csv``, ``events.csv``, ``summary.json``, ``night.png`` and
    ``report.html``.
    """
    onset = np.arange(score.n_epochs) * EPOCH_SECONDS
    names = [STAGE_NAMES[s] if s >= 0 else "" for s in score.stages]
    epoch = np.arange(score.n_epochs) + 1
    pd.DataFrame({"epoch": epoch, "onset_s": onset, "stage": names}).to_csv(folder / "stages.csv", index=False)
    density: dict[str, Any] = {"epoch": epoch, "onset_s": onset}
    density |= {name: score.hypnodensity[:, k] for k, name in enumerate(STAGE_NAMES)}
    density |= score.probability
    pd.DataFrame(density).to_csv(folder / "hypnodensity.csv", index=False, float_format="%.5f")
    pd.DataFrame(
        {
            "onset_s": [event.onset for event in score.events],
            "duration_s": [event.duration for event in score.events],
            "type": [event.type for event in score.events],
            "stage": [names[int(event.onset // EPOCH_SECONDS)] for event in score.events],
        }
    ).to_csv(folder / "events.csv", index=False)
    write_json(folder / "summary.json", summary(score, night))
    example = NightExample(score, night)
    (folder / "night.png").write_bytes(figure_bytes(example))
    night_page(folder / "report.html", example)


def summary(score: NightScore, night: PreparedRecording) -> dict[str, Any]:
    """What ``summary.json`` holds: plain JSON types, undefined values null."""
    content: dict[str, Any] = {
        "record": score.record,
        "file": str(night.path),
        "epochs": score.n_epochs,
        "channels": list(score.channels),
        "models": score.models,
        "thresholds": score.threshold,
        "sleep": asdict(score.statistics),
        "breathing": {
            "ahi": score.ahi,
            "ahi_definition": AHI_DEFINITION,
            "apneas": score.count("apnea"),
            "apnea_index": score.apnea_index,
            "hypopneas": score.count("hypopnea"),
            "hypopnea_index": score.hypopnea_index,
        },
        "warnings": list(score.warnings),
        "provenance": night.provenance,
        "sleepfm": __version__,
    }
    if (night.stage >= 0).any():
        content["agreement"] = agreement_with(score, night)
    return _plain(content)


def agreement_with(score: NightScore, night: PreparedRecording) -> dict[str, Any]:
    """How the model agrees with the recording's human scoring, of stages and of events."""
    truth = np.where(score.stages >= 0, night.stage, -1)
    figures = evaluate(TASKS["stage"], truth, score.hypnodensity, [night.subject] * score.n_epochs, n_boot=0)
    found: dict[str, Any] = {"stage": {name: m.value for name, m in figures.metrics.items()}}
    for kind in score.threshold if night.events else ():
        scored = [event for event in night.events if event_family(event.type) == kind]
        match = match_events([event for event in score.events if event.type == kind], scored)
        found[kind] = asdict(match) | {"f1": match.f1}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
