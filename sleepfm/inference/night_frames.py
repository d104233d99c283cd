"""A scored night as tables (pandas): epochs are numbered from 1, seconds count from the first sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES
from sleepfm.evaluation.breathing import index_by_part
from sleepfm.evaluation.events import event_family
from sleepfm.signals.scorings.scoring import Event

if TYPE_CHECKING:
    import pandas as pd

    from sleepfm.inference.night_score import NightScore


def stages_frame(score: NightScore) -> pd.DataFrame:
    """A row for each epoch: ``epoch``, ``onset_s``, ``stage`` (None if unscored) and ``confidence``, the stage's probability."""
    import pandas as pd

    unscored = np.isnan(score.hypnodensity).any(axis=1)
    largest = np.where(unscored, np.nan, np.nan_to_num(score.hypnodensity).max(axis=1))
    # Of an epoch without a stage nothing, and not 0.
    confidence = np.where(score.stages >= 0, largest, np.nan)
    return pd.DataFrame(_epochs(score) | {"stage": stage_names(score), "confidence": confidence})


def hypnodensity_frame(score: NightScore) -> pd.DataFrame:
    """A row for each epoch: ``epoch``, ``onset_s``, the probability of each stage (``W`` to ``REM``) and of an event of each
    task; nan if unscored.
    """
    import pandas as pd

    density: dict[str, NDArray[np.float64]] = {name: score.hypnodensity[:, k] for k, name in enumerate(STAGE_NAMES)}
    return pd.DataFrame(_epochs(score) | density | score.probability)


def events_frame(score: NightScore) -> pd.DataFrame:
    """A row for each event: ``onset_s``, ``duration_s``, ``type``, ``stage`` (:func:`event_stages`), what followed an apnea or
    a hypopnea, and ``confidence``, its mean probability.

    ``desaturation_percent`` is 0 without a desaturation, ``arousal`` whether one ended the event; None if that was not scored.
    """
    rows, evidence = spans_frame(score, score.events), score.evidence
    of = [evidence.get(event) for event in score.events]
    rows["desaturation_percent"] = [found.depth if found else None for found in of]
    rows["arousal"] = [found.arousal if found else None for found in of]
    rows["confidence"] = [round(event_confidence(score, event), 4) for event in score.events]
    return rows


def spans_frame(score: NightScore, spans: Sequence[Event]) -> pd.DataFrame:
    """A row for each of ``spans``: ``onset_s``, ``duration_s``, ``type``, and ``stage`` (:func:`event_stages`)."""
    import pandas as pd

    return pd.DataFrame(
        {
            "onset_s": [span.onset for span in spans],
            "duration_s": [span.duration for span in spans],
            "type": [span.type for span in spans],
            "stage": event_stages(score, spans),
        }
    )


def event_stages(score: NightScore, events: Sequence[Event]) -> list[str | None]:
    """The stage of each event, as the AHI by stage has it: that of the epoch of counted sleep that most of the event lies in, of
    equals the first. Where it lies in no such epoch, it is the same of all epochs with a stage; None without one.
    """
    staged = score.stages.astype(int)
    counted = {kind: np.where(score.counted_sleep(kind), staged, -1) for kind in {event_family(e.type) for e in events}}
    return [_stage_of(event, counted[event_family(event.type)]) or _stage_of(event, staged) for event in events]


def _stage_of(event: Event, stages: NDArray[np.int64]) -> str | None:
    return next((part.name for part in index_by_part([event], stages, STAGE_NAMES) if part.found), None)


def stage_names(score: NightScore) -> list[str | None]:
    """The name of each epoch's stage, None if unscored."""
    return [STAGE_NAMES[stage] if stage >= 0 else None for stage in score.stages.tolist()]


def event_confidence(score: NightScore, event: Event) -> float:
    """Mean probability over the seconds of an event, or over the epochs of a run; nan where the model said nothing of them."""
    family = event_family(event.type)
    first, stop = int(event.onset), math.ceil(event.onset + event.duration)
    if family in score.seconds and family in score.event_threshold:
        values = score.seconds[family][first:stop]
    elif family in score.probability:
        values = score.probability[family][first // EPOCH_SECONDS : math.ceil(stop / EPOCH_SECONDS)]
    else:
        return math.nan
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _epochs(score: NightScore) -> dict[str, Any]:
    return {"epoch": np.arange(score.n_epochs) + 1, "onset_s": np.arange(score.n_epochs) * EPOCH_SECONDS}
