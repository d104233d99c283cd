"""Predictions on a split by all ranks of a job, each on its share of the recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.predict import NightPrediction, join_nights
from sleepfm.training.ranks.shared_work import SharedWork


def shared_predictions(
    work: SharedWork,
    what: str,
    dataset: Dataset,
    rows: Sequence[int],
    predict: Callable[[Sequence[int]], Iterable[NightPrediction]],
) -> Predictions:
    """What ``predict`` says of ``rows``, recordings in shard order, on rank 0; of no epoch on the others. Every rank calls this.

    Args:
        what: the work in words.
        predict: predictions of those of ``rows`` that this rank takes, in their order.

    Raises:
        SleepFMError: what ``predict`` raised on any rank.
    """

    def own(share: range) -> Iterable[tuple[Tensor, ...]]:
        for night in predict([rows[number] for number in share]):
            yield tuple(torch.from_numpy(column) for column in night)

    found = work.each(what, dataset.n_epochs[rows].tolist(), own)
    if not work.world.is_main:
        return Predictions.none()
    return join_nights(dataset, rows, [NightPrediction(*(column.numpy() for column in columns)) for columns in found])
