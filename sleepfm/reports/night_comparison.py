"""One night by the models beside the same night by a human: agreement, and the night's figures of both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import Stage
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_figures import ComparedNight, agreement_of
from sleepfm.evaluation.events import ahi, event_family, is_known, join_overlapping
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.night_agreement import SLEEP_UNITS, sleep_figures
from sleepfm.evaluation.sleep_statistics import sleep_statistics
from sleepfm.inference.night_score import NightScore
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.tasks import TASKS


@dataclass(frozen=True)
class ComparedFigure:
    """A figure of the night in ``unit`` by the model and by the human; nan where it is not defined."""

    name: str
    unit: str
    model: float
    human: float

    @property
    def difference(self) -> float:
        """Model less human."""
        return self.model - self.human


def has_human_scoring(night: PreparedRecording) -> bool:
    """Whether a human scored stages or events of the recording."""
    return bool((night.stage >= 0).any() or night.events)


def compared_figures(score: NightScore, night: PreparedRecording) -> tuple[ComparedFigure, ...]:
    """The sleep statistics and the AHI of both, over the epochs in bed that both scored; what either lacks is left out.

    A night begins and ends where the common epochs do, so that figures differ from those of the whole night where one side has
    scored more of it.
    """
    found = []
    mine = score.in_bed
    both = (mine >= 0) & (night.stage >= 0)
    if "stage" in score.models and both.any():
        figures = [sleep_figures(sleep_statistics(np.where(both, stage, -1))) for stage in (mine, night.stage)]
        for name, unit in SLEEP_UNITS.items():
            found.append(ComparedFigure(figure_title(name), unit, figures[0][name], figures[1][name]))
    index = agreement_with(score, night).get("ahi")
    if index is not None:
        found.append(ComparedFigure("AHI", "1/h", index["model"], index["scored"]))
    return tuple(figure for figure in found if not math.isnan(figure.model) or not math.isnan(figure.human))


def figure_title(name: str) -> str:
    """``rem_latency`` as ``REM latency``, ``minutes_N2`` as ``N2``."""
    known = {"rem_latency": "REM latency", "waso": "WASO", "efficiency": "sleep efficiency", "latency": "sleep latency"}
    return known.get(name, name.removeprefix("minutes_").replace("_", " "))


def agreement_with(score: NightScore, night: PreparedRecording) -> dict[str, Any]:
    """How the model agrees with the recording's human scoring: of stages and of other epochs, of events family by family, and of
    the AHI.

    ``positive_runs`` says whether the model's side of a family are runs of positive epochs instead of events. Events outside of
    the epochs that both scored count on neither side. The human's AHI is nan where too many events were not understood.
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
        labelled = (truths["apnea"] >= 0) & (truths["hypopnea"] >= 0)
        found["ahi"] = {
            "model": ahi(score.events, both & (score.stages > Stage.W)),
            "scored": ahi(scored, both & (night.stage > Stage.W)) if is_known(night.stage > Stage.W, labelled) else math.nan,
        }
    return found


def _truth(night: PreparedRecording, task: str) -> NDArray[np.int8]:
    """Classes [E] of ``task`` by the recording's human scoring, -1 where unscored."""
    rule = TASKS[task].label
    return rule.classes(night.stage if rule.stored == "stage" else night.labels[rule.stored])
