"""A scored night as tables (pandas): epochs are numbered from 1, seconds count from the first sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES
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
    """A row for each event: ``onset_s``, ``duration_s``, ``type``, the ``stage`` in which it begins, what followed an apnea or a
    hypopnea, and ``confidence``, its mean probability.

    ``desaturation_percent`` is 0 without a desaturation, ``arousal`` whether one ended the event; None if that was not scored.
    """
    rows, evidence = spans_frame(score, score.events), score.evidence
    of = [evidence.get(event) for event in score.events]
    rows["desaturation_percent"] = [found.depth if found else None for found in of]
    rows["arousal"] = [found.arousal if found else None for found in of]
    rows["confidence"] = [round(event_confidence(score, event), 4) for event in score.events]
    return rows


def spans_frame(score: NightScore, spans: Sequence[Event]) -> pd.DataFrame:
    """A row for each of ``spans``: ``onset_s``, ``duration_s``, ``type``, and the ``stage`` of the epoch in which it begins."""
    import pandas as pd

    stages = stage_names(score)
    return pd.DataFrame(
        {
            "onset_s": [span.onset for span in spans],
            "duration_s": [span.duration for span in spans],
            "type": [span.type for span in spans],
            "stage": [stages[int(span.onset // EPOCH_SECONDS)] for span in spans],
        }
    )


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
