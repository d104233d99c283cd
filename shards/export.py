"""A data set as the reference's folders: ``x.parquet`` and ``y.parquet`` for each recording.

The columns are those that SynthSleepNet's ``dataset/data_parser.py`` writes, for people who have loaders for
them: ``x`` holds the scaled signals at 100 Hz end to end, ``y`` one row an epoch. What differs is meant to: the
night is filtered whole, ``EEG_C4`` and ``EEG_C3`` are those derivations (the reference's names are swapped), and an
unscored epoch has stage -1 instead of being counted as wake.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.names import shown
from sleepfm.constants import CHANNELS
from sleepfm.data.dataset import Dataset
from sleepfm.data.in_order import iter_record
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events, unclear_events
from sleepfm.errors import DatasetError
from sleepfm.output import Origin, whole_folder
from sleepfm.signals.record_names import KEY
from sleepfm.signals.scorings.labels import EventRule, event_labels
from sleepfm.signals.scorings.scoring import Scoring

SIGNAL_COLUMNS = {
    "EEG_C4": "EEG_C4",
    "EEG_C3": "EEG_C3",
    "EOG_L": "EOG_Left",
    "EOG_R": "EOG_Right",
    "ECG": "ECG",
    "EMG_CHIN": "EMG_Chin",
    "AIRFLOW": "Airflow",
}
EVENT_COLUMNS = {
    "obstructive_apnea": "Obstructive Apnea",
    "central_apnea": "Central Apnea",
    "mixed_apnea": "Mixed Apnea",
    "hypopnea": "Hypopnea",
    "desaturation": "SpO2 Desaturation",
}
STAGE_COLUMN = "Sleep Stage"


def export_parquet(path: str | Path, folder: Path, rule: EventRule = "overlap") -> Iterator[str]:
    """Write one folder a recording below ``folder``; yields each recording's name when it is written.

    Channels that a recording lacks are no column; epochs in which a channel is unusable are 0. A recording whose events were not
    scored has -1 in their columns, and so have epochs without a stage and those with a respiratory event that was not understood
    or, in the columns of apneas, with one of unknown kind.

    Args:
        path: folder or URL of the data set.
        rule: how events become labels, ``overlap`` in its current version or ``reference`` (the reference's rounding).

    Raises:
        DatasetError: not a data set, or ``folder`` holds something else.
        ShardError: a sample is corrupt.
        StorageError: ``folder`` cannot be written to, or holds a folder of a recording's name that is not this export's.
    """
    dataset = Dataset.open(path)
    if folder.exists() and (not folder.is_dir() or any(not item.is_dir() for item in folder.iterdir())):
        raise DatasetError(f"{folder}: exists and is not an export; give a new or an empty folder")
    reader = ShardReader(dataset)
    for record in dataset.names:
        if not KEY.fullmatch(record):
            raise DatasetError(
                f"{path}: {shown(record)!r} is not a valid name of a record; this manifest was not written by a build"
            )
    for row, record in enumerate(dataset.names):
        origin = Origin("exported recording", f"{dataset.digest} {rule} {record}", f"{path} (rule {rule})")
        with whole_folder(folder / record, origin) as target:
            _write(target / "x.parquet", _signals(dataset, reader, row))
            _write(target / "y.parquet", _labels(dataset, reader, row, rule))
        yield record


def _signals(dataset: Dataset, reader: ShardReader, row: int) -> dict[str, NDArray[np.float32]]:
    present = {CHANNELS[number] for number in np.flatnonzero(dataset.present[row])}
    columns = {}
    for channel, column in SIGNAL_COLUMNS.items():
        if channel in present:
            parts = iter_record(dataset, dataset.names[row], [channel], labels=(), reader=reader)
            columns[column] = np.concatenate([batch.signals.numpy().reshape(-1) for batch in parts])
    return columns


def _labels(dataset: Dataset, reader: ShardReader, row: int, rule: EventRule) -> dict[str, NDArray[np.int32]]:
    epochs = int(dataset.n_epochs[row])
    events = scored_events(dataset, reader, row)
    labels = RecordLabels(dataset, reader, ("stage", "arousal", "desaturation")).of(row)
    scored = bool((labels["arousal"] >= 0).any())
    staged = labels["stage"] >= 0
    unreliable = ("desaturation",) if staged.any() and (labels["desaturation"][staged] < 0).all() else ()
    unclear = unclear_events(dataset, reader, row)
    scoring = Scoring((), events, "", has_events=scored, unclear=unclear, unreliable=unreliable)
    columns = {column: event_labels(scoring, epochs, (kind,), rule).astype(np.int32) for kind, column in EVENT_COLUMNS.items()}
    # As the shards' own labels of breathing events are: where no stage was scored, nobody looked for events either.
    columns = {column: np.where(staged, values, np.int32(-1)) for column, values in columns.items()}
    return {**columns, STAGE_COLUMN: labels["stage"].astype(np.int32)}


def _write(path: Path, columns: dict[str, NDArray[np.float32]] | dict[str, NDArray[np.int32]]) -> None:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
