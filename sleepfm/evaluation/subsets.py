"""What a model is worth with fewer channels: its figures for every subset of modalities."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from sleepfm.constants import CHANNEL_MODALITY, MODALITIES
from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.outcome import judge
from sleepfm.evaluation.predict import predict
from sleepfm.evaluation.report import SubsetResult
from sleepfm.evaluation.tasks import TASKS
from sleepfm.scoring import TaskModel


def modality_subsets(
    entry: TaskModel,
    dataset: Dataset,
    split: str,
    subsets: Sequence[tuple[str, ...]] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[SubsetResult]:
    """Figures of ``entry`` on ``split`` for each of ``subsets``: every one of the model's modalities by
    default, largest first.

    The model itself is the same throughout; channels outside the subset are absent. All subsets of four
    modalities of one channel each cost as much as eight predictions with all channels.

    Raises:
        DatasetError: the split holds no recording with such a channel.
        ModelError: the model has no channel of a subset.
    """
    known = [name for name in MODALITIES if name in {CHANNEL_MODALITY[c] for c in entry.model.channels}]
    if subsets is None:
        subsets = [s for size in range(len(known), 0, -1) for s in itertools.combinations(known, size)]
    results = []
    for number, subset in enumerate(subsets, 1):
        predictions = predict(entry.model, dataset, split, window=entry.window, modalities=subset, chunk=chunk)
        results.append(SubsetResult(tuple(subset), judge(TASKS[entry.task], predictions, entry.threshold)))
        if progress is not None:
            progress(number, len(subsets))
    return results
