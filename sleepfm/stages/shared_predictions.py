"""Predictions on a split by all ranks of a job, each on its share of the recordings, and over the sources of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import DataSource, Mixture
from sleepfm.evaluation.prediction_figures import validation_figures
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import NightPrediction, join_nights
from sleepfm.tasks import Task
from sleepfm.training.ranks.shared_work import SharedWork


def shared_predictions(
    work: SharedWork,
    what: str,
    dataset: Dataset,
    rows: Sequence[int],
    predict: Callable[[Sequence[int]], Iterable[NightPrediction]],
    kinds: Sequence[str] = (),
) -> Predictions:
    """What ``predict`` says of ``rows``, recordings in shard order, on rank 0; of no epoch on the others. Every rank calls this.

    Args:
        what: the work in words.
        predict: predictions of those of ``rows`` that this rank takes, in their order.
        kinds: the kinds of events that the model tells apart.

    Raises:
        SleepFMError: what ``predict`` raised on any rank.
    """

    def own(share: range) -> Iterable[tuple[Tensor, ...]]:
        for night in predict([rows[number] for number in share]):
            yield tuple(torch.from_numpy(column) for column in night)

    found = work.each(what, dataset.n_epochs[rows].tolist(), own)
    if not work.world.is_main:
        return Predictions.none()
    nights = [NightPrediction(*(column.numpy() for column in columns)) for columns in found]
    return join_nights(dataset, rows, nights, kinds)


def joined_predictions(mixture: Mixture, found: Sequence[tuple[DataSource, Predictions]]) -> Predictions:
    """Those on each source as one: recordings as :meth:`Mixture.label` names them, people by cohort, so that somebody in two
    data sets of one cohort is one person. Of a single data set they stay as they are.
    """
    if len(mixture.sources) == 1:
        return found[0][1]
    parts = [_labelled(mixture, source, predictions) for source, predictions in found if len(predictions.record)]
    if not parts:
        return Predictions.none()
    seconds = [part.seconds for part in parts if part.seconds is not None]
    kinds = {name: np.concatenate([part.kinds[name] for part in parts]) for name in parts[0].kinds}
    return Predictions(
        np.concatenate([part.record for part in parts]),
        np.concatenate([part.subject for part in parts]),
        np.concatenate([part.epoch for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.probability for part in parts]),
        np.concatenate(seconds) if seconds else None,
        kinds,
    )


def _labelled(mixture: Mixture, source: DataSource, predictions: Predictions) -> Predictions:
    person = {name: mixture.person(source, source.dataset.index_of(name)) for name in dict.fromkeys(predictions.record)}
    record = np.array([mixture.label(source, name) for name in predictions.record], dtype=object)
    subject = np.array([person[name] for name in predictions.record], dtype=object)
    return replace(predictions, record=record, subject=subject)


def figures_by_source(mixture: Mixture, task: Task, predictions: Predictions) -> dict[str, float]:
    """The headline figures of ``predictions`` on ``val``, and those of each source of a mixture as ``val/<figure>/<source>``."""
    figures = validation_figures(task, predictions)
    if len(mixture.sources) == 1:
        return figures
    for source in mixture.sources:
        own = np.array([record.startswith(mixture.label(source, "")) for record in predictions.record])
        if own.any():
            columns = {name: getattr(predictions, name)[own] for name in ("record", "subject", "epoch", "truth", "probability")}
            part = replace(predictions, **columns, seconds=None, kinds={})
            figures |= {f"{name}/{source.name}": value for name, value in validation_figures(task, part).items()}
    return figures
