"""Whole nights by the models against the human: sleep statistics, and the AHI of the models' own stages and events.

Both sides are taken over the epochs that both scored; the rest of a night is in neither's figures. From predictions alone, so
that ``test`` is not read a second time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import STAGE_NAMES, Stage
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.events import ahi, find_events, is_known, join_overlapping
from sleepfm.evaluation.paired import PairedAgreement, paired_agreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.sleep_statistics import SleepStatistics, sleep_statistics
from sleepfm.signals.scorings.scoring import Event

# Figures of :class:`SleepStatistics` that are compared, with their units.
SLEEP_FIGURES = {
    "total_sleep_time": "min",
    "efficiency": "%",
    "latency": "min",
    "rem_latency": "min",
    "waso": "min",
    "awakenings": "",
}
# The same, and minutes of each stage.
SLEEP_UNITS = SLEEP_FIGURES | {f"minutes_{name}": "min" for name in STAGE_NAMES}


def sleep_agreement(predictions: Predictions, resamples: int = 1000, seed: int = 0) -> dict[str, PairedAgreement]:
    """Agreement of every sleep statistic of a stager's ``predictions``, night by night, by its name.

    The statistics are those of :class:`sleepfm.evaluation.sleep_statistics.SleepStatistics`, by AASM's definitions, and
    minutes of each stage (``minutes_N2`` and so on). A night begins and ends where the human's scoring does.
    """
    people, theirs, mine = [], [], []
    for _, subject, truth, stage in _nights(predictions):
        both = (truth >= 0) & (stage >= 0)
        if both.any():
            people.append(subject)
            theirs.append(sleep_figures(sleep_statistics(np.where(both, truth, -1))))
            mine.append(sleep_figures(sleep_statistics(np.where(both, stage, -1))))
    return {
        name: paired_agreement(
            name, [row[name] for row in theirs], [row[name] for row in mine], people, unit=unit, n_boot=resamples, seed=seed
        )
        for name, unit in SLEEP_UNITS.items()
    }


def ahi_agreement(
    dataset: Dataset,
    staging: Predictions,
    events: Mapping[str, Predictions],
    thresholds: Mapping[str, float],
    resamples: int = 1000,
    seed: int = 0,
) -> PairedAgreement:
    """Agreement of the AHI (:data:`sleepfm.evaluation.events.AHI_DEFINITION`) of the models with the human's, night by night.

    Args:
        staging: of sleep stages; the model's sleep is where it says so.
        events: apnea and hypopnea, each told to the second; ``thresholds`` of a second, chosen on ``val``.

    Nights that a human did not stage or score for breathing are in none of it. Nights without common sleep, and those of which
    the human's AHI is not known since too many events were not understood (:func:`sleepfm.evaluation.events.is_known`), are
    counted as left out.
    """
    reader = ShardReader(dataset)
    people, theirs, mine = [], [], []
    for record, subject, truth, stage in _nights(staging):
        row = dataset.index_of(record)
        own = {kind: predictions.record == record for kind, predictions in events.items()}
        if not dataset.records[row].has_events or not all(own[kind].any() for kind in KINDS) or not (truth >= 0).any():
            continue
        both = (truth >= 0) & (stage >= 0)
        labelled = np.ones_like(both)
        found: list[Event] = []
        for kind in KINDS:
            predictions, mask = events[kind], own[kind]
            labelled &= predictions.truth[mask] >= 0
            both &= predictions.scored[mask]
            assert predictions.seconds is not None
            found += find_events(predictions.seconds[mask].reshape(-1), thresholds[kind], kind, True)
        known = is_known(truth > Stage.W, labelled)
        both &= labelled
        people.append(subject)
        theirs.append(ahi(scored_events(dataset, reader, row), both & (truth > Stage.W)) if known else math.nan)
        mine.append(ahi(join_overlapping(found), both & (stage > Stage.W)))
    return paired_agreement("ahi", theirs, mine, people, unit="1/h", is_ahi=True, n_boot=resamples, seed=seed)


def _nights(
    predictions: Predictions,
) -> list[tuple[str, str, NDArray[np.int64], NDArray[np.int64]]]:
    """Record, person, the human's stages [E] and the model's [E] of every recording; -1 where unscored."""
    found = []
    for record in dict.fromkeys(predictions.record):
        own = predictions.record == record
        probability = predictions.probability[own]
        stage = np.where(predictions.scored[own], np.nan_to_num(probability).argmax(axis=1), -1)
        found.append((str(record), str(predictions.subject[own][0]), predictions.truth[own], stage))
    return found


def sleep_figures(statistics: SleepStatistics) -> dict[str, float]:
    """The figures of :data:`SLEEP_UNITS`; nan where one is not defined."""
    values = {name: getattr(statistics, name) for name in SLEEP_FIGURES}
    values |= {f"minutes_{name}": minutes for name, minutes in statistics.stage_minutes.items()}
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
