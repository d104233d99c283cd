"""The files of one scored night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_figures import ComparedNight, agreement_of
from sleepfm.evaluation.events import ahi, event_family, join_overlapping
from sleepfm.evaluation.hypopnea_rules import COMMON, DEFINITIONS
from sleepfm.evaluation.metrics import evaluate
from sleepfm.files import write_json
from sleepfm.inference.night_score import NightScore
from sleepfm.reports.night_tables import clock_of, write_tables
from sleepfm.reports.report import NightExample, figure_bytes, night_page
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.scorings.free_text import provenance_without_texts, without_texts
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.night import WrittenNight, scoring_files
from sleepfm.tasks import TASKS
from sleepfm.version import __version__


def write_night(
    folder: Path,
    score: NightScore,
    night: PreparedRecording,
    start: datetime | None = None,
    made_with: dict[str, Any] | None = None,
) -> None:
    """Write the files of one scored night, none of which holds free text of the recording or its scoring.

    Epochs are numbered from 1 and seconds from 0 in each: ``stages.csv``, ``hypnodensity.csv``, ``events.csv``,
    ``desaturations.csv``, ``positive_runs.csv``, ``probabilities.parquet``, ``hypnogram.npy``, the scoring in the formats of
    :func:`sleepfm.signals.scorings.writers.night.scoring_files`, ``summary.json``, ``night.png`` and ``report.html``.

    Args:
        start: date and time of the recording's first sample, by which other programs lay EDF+ annotations over the recording; the
            clock time alone where it is not known.
        made_with: what the files follow from beside the recording, in JSON types, for who asks whether they are up to date.
    """
    score = replace(score, warnings=tuple(map(without_texts, score.warnings)))
    names = [STAGE_NAMES[s] if s >= 0 else "" for s in score.stages]
    clock = clock_of(start, night.provenance.get("clock"))
    write_tables(folder, score, night, clock)
    _events(score, names).assign(clock=[clock(event.onset) for event in score.events]).to_csv(folder / "events.csv", index=False)
    _desaturations(score, names).to_csv(folder / "desaturations.csv", index=False)
    _spans(score.runs, names).to_csv(folder / "positive_runs.csv", index=False)
    for name, content in scoring_files(written_night(score, night, start)).items():
        (folder / name).write_bytes(content)
    write_json(folder / "summary.json", summary(score, night) | ({"made_with": made_with} if made_with else {}))
    example = NightExample(score, night)
    (folder / "night.png").write_bytes(figure_bytes(example))
    night_page(folder / "report.html", example)


def written_night(score: NightScore, night: PreparedRecording, start: datetime | None) -> WrittenNight:
    """What goes into files of scorings: stages, events told to the second, desaturations, and where none were looked for."""
    falls = [fall.as_event() for fall in score.desaturations]
    # What a model finds in a recording that cannot show it is nobody's scoring.
    found = [event for event in score.events if event_family(event.type) not in score.without_evidence]
    events = sorted([*found, *falls], key=lambda event: (event.onset, event.type))
    return WrittenNight(score.stages, tuple(events), score.assessed_families, start, night.provenance.get("clock"))


def _events(score: NightScore, stages: Sequence[str]) -> pd.DataFrame:
    """Events with what followed each apnea and hypopnea: its desaturation in % (0 without one) and whether an arousal ended it;
    empty where that was not scored.
    """
    rows, evidence = _spans(score.events, stages), score.evidence
    of = [evidence.get(event) for event in score.events]
    rows["desaturation_percent"] = [found.depth if found else None for found in of]
    rows["arousal"] = [found.arousal if found else None for found in of]
    return rows


def _desaturations(score: NightScore, stages: Sequence[str]) -> pd.DataFrame:
    falls = score.desaturations
    rows = _spans([fall.as_event() for fall in falls], stages).drop(columns="type")
    return rows.assign(depth_percent=[fall.depth for fall in falls], nadir_percent=[fall.nadir for fall in falls])


def _spans(spans: Sequence[Event], stages: Sequence[str]) -> pd.DataFrame:
    """One row a span, with the stage of the epoch in which it begins."""
    return pd.DataFrame(
        {
            "onset_s": [span.onset for span in spans],
            "duration_s": [span.duration for span in spans],
            "type": [span.type for span in spans],
            "stage": [stages[int(span.onset // EPOCH_SECONDS)] for span in spans],
        }
    )


def summary(score: NightScore, night: PreparedRecording) -> dict[str, Any]:
    """What ``summary.json`` holds: plain JSON types, undefined values null."""
    content: dict[str, Any] = {
        "record": score.record,
        "file": str(night.path),
        "epochs": score.n_epochs,
        "channels": list(score.channels),
        "models": score.models,
        "inputs": {task: list(names) for task, names in score.inputs.items()},
        "thresholds": score.threshold,
        "event_thresholds": score.event_threshold,
        "sleep": asdict(score.statistics),
        "lights": score.lights.to_json(),
        "breathing": score.breathing.to_json(),
        "ahi_by_definition": score.ahi_by_definition,
        "ahi_definitions": {name: text + COMMON for name, text in DEFINITIONS.items()},
        "oximetry": None if score.oximetry is None else score.oximetry.to_json(),
        "arousal_index": score.arousal_index,
        "warnings": list(score.warnings),
        "provenance": provenance_without_texts(night.provenance),
        "sleepfm": __version__,
    }
    if (night.stage >= 0).any() or night.events:
        content["agreement"] = agreement_with(score, night)
    return _plain(content)


def agreement_with(score: NightScore, night: PreparedRecording) -> dict[str, Any]:
    """How the model agrees with the recording's human scoring: of stages and of other epochs, of events family by family, and of
    the AHI.

    ``positive_runs`` says whether the model's side of a family are runs of positive epochs instead of events. Events outside of
    the epochs that both scored count on neither side.
    """
    found: dict[str, Any] = {}
    if "stage" in score.models:
        truth = np.where(score.stages >= 0, night.stage, -1)
        figures = evaluate(TASKS["stage"], truth, score.hypnodensity, [night.subject] * score.n_epochs, n_boot=0)
        found["stage"] = {name: m.value for name, m in figures.metrics.items()}
    truths = {task: _truth(night, task) for task in score.threshold}
    both_scored = {task: np.isfinite(score.probability[task]) & (truth >= 0) for task, truth in truths.items()}
    scored = join_overlapping(night.events)
    for kind, epochs in both_scored.items():
        if not epochs.any():
            continue
        if not TASKS[kind].event:
            chance = score.probability[kind]
            density = np.stack([1 - chance, chance], axis=1)
            truth = np.where(epochs, truths[kind], -1)
            people = [night.subject] * score.n_epochs
            figures = evaluate(TASKS[kind], truth, density, people, threshold=score.threshold[kind], n_boot=0)
            found[kind] = {name: m.value for name, m in figures.metrics.items()}
            continue
        located = kind in score.event_threshold
        mine = [event for event in (score.events if located else score.runs) if event_family(event.type) == kind]
        theirs = [event for event in scored if event_family(event.type) == kind]
        match, _ = agreement_of(ComparedNight(night.record, night.subject, tuple(mine), tuple(theirs), epochs))
        found[kind] = asdict(match) | {"f1": match.f1, "positive_runs": not located}
    if set(KINDS) <= score.event_threshold.keys() and (night.stage >= 0).any() and all(both_scored[kind].any() for kind in KINDS):
        both = both_scored["apnea"] & both_scored["hypopnea"]
        found["ahi"] = {
            "model": ahi(score.events, both & (score.stages > Stage.W)),
            "scored": ahi(scored, both & (night.stage > Stage.W)),
        }
    return found


def _truth(night: PreparedRecording, task: str) -> NDArray[np.int8]:
    """Classes [E] of ``task`` by the recording's human scoring, -1 where unscored."""
    rule = TASKS[task].label
    return rule.classes(night.stage if rule.stored == "stage" else night.labels[rule.stored])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
