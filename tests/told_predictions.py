"""Predictions of a model that says what the human said."""

from __future__ import annotations

import numpy as np

from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events
from sleepfm.evaluation.events import event_family
from sleepfm.evaluation.predictions import Predictions


def whole(dataset: Dataset, task: str, classes: int, certainty: float = 0.9) -> Predictions:
    """Predictions of every recording that say what the human said; of events also second by second."""
    reader = ShardReader(dataset)
    labels = RecordLabels(dataset, reader, (task,), task)
    columns = []
    for row, whose in enumerate(zip(dataset.names, dataset.subjects, strict=True)):
        truth = labels.of(row)[task].astype(np.int64)
        probability = np.full((len(truth), classes), (1 - certainty) / (classes - 1))
        probability[np.arange(len(truth)), np.maximum(truth, 0)] = certainty
        seconds = np.full(30 * len(truth), 0.1)
        for event in scored_events(dataset, reader, row):
            if event_family(event.type) == task:
                seconds[round(event.onset) : round(event.onset + event.duration)] = certainty
        number = len(truth)
        texts = [np.full(number, text, object) for text in whose]
        columns.append((*texts, np.arange(number), truth, probability, seconds.reshape(number, 30)))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    record, subject, epoch, truth, probability, seconds = joined
    return Predictions(record, subject, epoch, truth, probability, seconds if task != "stage" else None)
