"""What models are worth with fewer channels: figures of epochs, of events and of the AHI for every subset of modalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sleepfm.constants import CHANNEL_MODALITY, MODALITIES
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ModelError
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.night_agreement import ahi_agreement
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.embed import embed_subsets, stored_epochs
from sleepfm.inference.predict import predict, predict_embedded
from sleepfm.inference.task_model import TaskModel
from sleepfm.tasks import TASKS

Modalities = tuple[str, ...]


@dataclass(frozen=True)
class SubsetResult:
    """A task's figures when the model is given ``modalities`` only; of tasks about events also those of events, with the index
    by night.
    """

    modalities: Modalities
    evaluation: Evaluation
    event_result: EventResult | None = None


@dataclass(frozen=True)
class SubsetAhi:
    """Agreement of the AHI with the human's when the models are given ``modalities`` only; without one, why it is ``missing``."""

    modalities: Modalities
    ahi: PairedAgreement | None
    missing: str = ""


def modality_subsets(
    entry: TaskModel,
    dataset: Dataset,
    split: str,
    subsets: Sequence[Modalities] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[SubsetResult]:
    """Figures of ``entry`` on ``split`` for each of ``subsets``; arguments and errors as :func:`predict_subsets`."""
    return subset_results(entry, dataset, predict_subsets(entry, dataset, split, subsets, chunk=chunk, progress=progress))


def subset_results(entry: TaskModel, dataset: Dataset, predictions: Mapping[Modalities, Predictions]) -> list[SubsetResult]:
    """Figures of what :func:`predict_subsets` gave for ``entry``, with its thresholds."""
    task, usage = TASKS[entry.task], entry.usage
    # Tasks of several classes name the most probable one, and have none.
    threshold = math.nan if usage.threshold is None else usage.threshold
    return [
        SubsetResult(
            subset,
            evaluate_predictions(task, found, threshold),
            EventResult.of(dataset, task.event, found, usage.detection_threshold) if task.event else None,
        )
        for subset, found in predictions.items()
    ]


def ahi_subsets(
    models: Mapping[str, TaskModel],
    dataset: Dataset,
    predictions: Mapping[str, Mapping[Modalities, Predictions]],
    subsets: Sequence[Modalities] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[SubsetAhi]:
    """Agreement of the AHI for each of ``subsets`` of the modalities that any of ``models`` knows, all by default, largest first.

    Args:
        models: by task. The AHI takes those of stages, apneas and hypopneas, of which the last two must tell seconds apart.
        predictions: what :func:`predict_subsets` gave for each of them.
    """
    tasks = ("stage", *KINDS)
    known = _ordered({name for task in tasks if task in models for name in known_modalities(models[task])})
    found = []
    for subset in all_subsets(known) if subsets is None else subsets:
        given: dict[str, Predictions] = {}
        missing = []
        for task in tasks:
            own = _ordered(set(subset) & set(known_modalities(models[task]))) if task in models else ()
            if task not in models:
                missing.append(f"no model of {task} was given")
            elif task != "stage" and not models[task].usage.located:
                missing.append(f"the model of {task} tells epochs, not events")
            elif own not in predictions[task]:
                missing.append(f"the model of {task} takes none of them ({', '.join(known_modalities(models[task]))})")
            else:
                given[task] = predictions[task][own]
        if missing:
            found.append(SubsetAhi(tuple(subset), None, "; ".join(missing)))
            continue
        events = {kind: given[kind] for kind in KINDS}
        thresholds = {kind: models[kind].usage.detection_threshold for kind in KINDS}
        ahi = ahi_agreement(dataset, given["stage"], events, thresholds, resamples, seed)
        found.append(SubsetAhi(tuple(subset), ahi))
    return found


def predict_subsets(
    entry: TaskModel,
    dataset: Dataset,
    split: str,
    subsets: Sequence[Modalities] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Modalities, Predictions]:
    """What ``entry`` says on ``split`` given each of ``subsets``: every one of the model's modalities by default, largest first.

    The model itself is the same throughout; channels outside the subset are absent. Recordings are read and go through the
    backbones once, whatever the number of subsets; under an event head, whose frames of all subsets would take much memory, and
    with powers of bands, once for each. ``progress`` counts recordings, of all passes.

    Raises:
        DatasetError: the split holds no recording with such a channel.
        ModelError: the model has no channel of a subset.
    """
    model, known = entry.model, known_modalities(entry)
    subsets = all_subsets(known) if subsets is None else [tuple(subset) for subset in subsets]
    for subset in subsets:
        if not set(subset) & set(known):
            raise ModelError(f"the model has no channel of {subset}; its channels: {', '.join(model.channels)}")
    if len(known) == 1:  # then every subset is all there is
        return dict.fromkeys(subsets, predict(model, dataset, split, window=entry.usage.window, chunk=chunk, progress=progress))
    if model.events is None and not model.config.powered:
        return _predict_embedded(entry, dataset, split, subsets, chunk, progress)
    found = {}
    for number, subset in enumerate(subsets):

        def tell(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(subsets) * total)

        found[subset] = predict(model, dataset, split, window=entry.usage.window, modalities=subset, chunk=chunk, progress=tell)
    return found


def _predict_embedded(
    entry: TaskModel,
    dataset: Dataset,
    split: str,
    subsets: Sequence[Modalities],
    chunk: int,
    progress: Callable[[int, int], None] | None,
) -> dict[Modalities, Predictions]:
    model, channels = entry.model, entry.model.channels
    masks = [[CHANNEL_MODALITY[name] in subset for name in channels] for subset in subsets]
    named = [{name for name, kept in zip(channels, mask, strict=True) if kept} for mask in masks]
    holding = [set(dataset.select(split, sorted(names)).tolist()) for names in named]
    nights: list[dict[str, Tensor]] = [{} for _ in subsets]
    rows = dataset.select(split, channels).tolist()
    for number, row in enumerate(rows, 1):
        record = dataset.names[row]
        embeddings = embed_subsets(model.encoder, stored_epochs(dataset, record, channels, chunk), masks)
        for place, held in enumerate(holding):
            if row in held:
                nights[place][record] = embeddings[place]
        if progress is not None:
            progress(number, len(rows))
    return {
        subset: predict_embedded(model, dataset, embedded, entry.usage.window)
        for subset, embedded in zip(subsets, nights, strict=True)
    }


def known_modalities(entry: TaskModel) -> Modalities:
    """The modalities that the model of ``entry`` has channels of."""
    return _ordered({CHANNEL_MODALITY[name] for name in entry.model.channels})


def all_subsets(known: Modalities) -> list[Modalities]:
    """Every subset of ``known`` but the empty one, largest first."""
    return [subset for size in range(len(known), 0, -1) for subset in itertools.combinations(known, size)]


def _ordered(names: set[str]) -> Modalities:
    return tuple(name for name in MODALITIES if name in names)
