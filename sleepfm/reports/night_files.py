"""The files of one scored night."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sleepfm.evaluation.events import event_family
from sleepfm.evaluation.hypopnea_rules import COMMON, DEFINITIONS
from sleepfm.evaluation.paired import severity_of
from sleepfm.files import write_json
from sleepfm.inference.night_frames import spans_frame
from sleepfm.inference.night_score import NightScore
from sleepfm.reports.night_comparison import agreement_with, has_human_scoring
from sleepfm.reports.night_facts import (
    NightExample,
    ahi_by_position,
    ahi_by_stage,
)
from sleepfm.reports.night_page import night_page
from sleepfm.reports.night_tables import clock_of, write_tables
from sleepfm.reports.plots import night_png
from sleepfm.signals.position import BodyPosition
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.scorings.free_text import provenance_without_texts, without_texts
from sleepfm.signals.scorings.writers.night import WrittenNight, scoring_files
from sleepfm.version import __version__


def write_night(
    folder: Path,
    score: NightScore,
    night: PreparedRecording,
    start: datetime | None = None,
    made_with: dict[str, Any] | None = None,
    identity: str | None = None,
    position: BodyPosition | None = None,
) -> dict[str, Any]:
    """Write the files of one scored night, none of which holds free text of the recording or its scoring.

    Returns what ``summary.json`` holds.

    Epochs are numbered from 1 and seconds from 0 in each: ``stages.csv``, ``hypnodensity.csv``, ``events.csv``,
    ``desaturations.csv``, ``positive_runs.csv``, ``probabilities.parquet``, ``hypnogram.npy``, the scoring in the formats of
    :func:`sleepfm.signals.scorings.writers.night.scoring_files`, ``summary.json``, ``night.png`` and ``report.html``.

    Args:
        start: date and time of the recording's first sample, by which other programs lay EDF+ annotations over the recording; the
            clock time alone where it is not known.
        identity: who the person is, in the report with the date; None for a report without either.
        position: of the body, where the recording tells it.
        made_with: what the files follow from beside the recording, in JSON types, for who asks whether they are up to date.
    """
    score = replace(score, warnings=tuple(map(without_texts, score.warnings)))
    clock = clock_of(start, night.provenance.get("clock"))
    write_tables(folder, score, night, clock)
    events = score.events_frame().assign(clock=[clock(event.onset) for event in score.events])
    events.to_csv(folder / "events.csv", index=False)
    _desaturations(score).to_csv(folder / "desaturations.csv", index=False)
    spans_frame(score, score.runs).to_csv(folder / "positive_runs.csv", index=False)
    for name, content in scoring_files(written_night(score, night, start)).items():
        (folder / name).write_bytes(content)
    example = NightExample(score, night, start=start, identity=identity, position=position)
    facts = summary(score, night, position) | ({"made_with": made_with} if made_with else {})
    write_json(folder / "summary.json", facts)
    (folder / "night.png").write_bytes(night_png(example))
    night_page(folder / "report.html", example)
    return facts


def written_night(score: NightScore, night: PreparedRecording, start: datetime | None) -> WrittenNight:
    """What goes into files of scorings: stages, events told to the second, desaturations, and where none were looked for."""
    falls = [fall.as_event() for fall in score.desaturations]
    # What a model finds in a recording that cannot show it is nobody's scoring.
    found = [event for event in score.events if event_family(event.type) not in score.without_evidence]
    events = sorted([*found, *falls], key=lambda event: (event.onset, event.type))
    return WrittenNight(score.stages, tuple(events), score.assessed_families, start, night.provenance.get("clock"))


def _desaturations(score: NightScore) -> pd.DataFrame:
    falls = score.desaturations
    rows = spans_frame(score, [fall.as_event() for fall in falls]).drop(columns="type")
    return rows.assign(depth_percent=[fall.depth for fall in falls], nadir_percent=[fall.nadir for fall in falls])


def summary(score: NightScore, night: PreparedRecording, position: BodyPosition | None = None) -> dict[str, Any]:
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
        "severity": severity_of(score.ahi) or None,
        "ahi_by_definition": score.ahi_by_definition,
        "ahi_definitions": {name: text + COMMON for name, text in DEFINITIONS.items()},
        "ahi_by_stage": {part.name: asdict(part) for part in ahi_by_stage(score)} or None,
        "ahi_by_position": {part.name: asdict(part) for part in ahi_by_position(NightExample(score, night, position=position))}
        or None,
        "oximetry": None if score.oximetry is None else score.oximetry.to_json(),
        "arousal_index": score.arousal_index,
        "warnings": list(score.warnings),
        "provenance": provenance_without_texts(night.provenance),
        "sleepfm": __version__,
    }
    if has_human_scoring(night):
        content["agreement"] = agreement_with(score, night)
    return _plain(content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
