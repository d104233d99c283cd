"""Labels and quality of whole recordings, and the part of the labels that a label fraction leaves."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS, STAGE_NAMES
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import LABELS, QUALITY_MEMBER, label_member
from sleepfm.data.order import permutation
from sleepfm.data.ranges import member_ranges
from sleepfm.data.reader import ShardReader
from sleepfm.errors import DatasetError, ShardError
from sleepfm.signals.quality import UNUSABLE
from sleepfm.tasks import TASKS, LabelRule

T = TypeVar("T")


class RecordLabels:
    """Labels of one recording at a time, [E] int8 each, the last ``cache`` recordings kept.

    ``labels`` and ``target`` name tasks (:data:`sleepfm.tasks.TASKS`), whose rules say what is read, or stored labels.

    ``fraction`` < 1 keeps, of the epochs of each recording that carry ``target``, a share drawn without
    replacement and stratified by class: ``max(1, round(fraction * n))`` of the ``n`` epochs of every class. So
    every subject keeps at least one epoch of each class it has (one positive, where one exists), also at 1 %,
    which then is a little more than 1 % of the rare classes. The draw depends on (``seed``, recording name) only, and
    a smaller fraction is a subset of a larger one. All labels of the other epochs become -1, and so do those of all
    recordings but ``rows``, where these are given.
    """

    def __init__(
        self,
        dataset: Dataset,
        reader: ShardReader,
        labels: Sequence[str],
        target: str = "stage",
        fraction: float = 1.0,
        seed: int = 0,
        cache: int = 4096,
        rows: frozenset[int] | None = None,
    ) -> None:
        if not 0 < fraction <= 1:
            raise DatasetError(f"label fraction {fraction}: expected a number above 0 and at most 1")
        self._dataset = dataset
        self._reader = reader
        self._rules = {name: label_rule(name) for name in (*labels, target)}
        self._target = target
        self._fraction = fraction
        self._seed = seed
        self._cache = cache
        self._rows = rows
        self._kept: OrderedDict[int, dict[str, NDArray[np.int8]]] = OrderedDict()

    def of(self, record: int) -> dict[str, NDArray[np.int8]]:
        """The labels of the recording in row ``record``. Raises :class:`ShardError` if unreadable or corrupt."""
        if self._rows is not None and record not in self._rows:
            return {name: np.full(int(self._dataset.n_epochs[record]), -1, np.int8) for name in self._rules}
        if record in self._kept:
            self._kept.move_to_end(record)
            return self._kept[record]
        labels = {name: rule.classes(self._stored(record, rule.stored)) for name, rule in self._rules.items()}
        if self._fraction < 1:
            outside = ~self._draw(labels[self._target], self._dataset.names[record])
            for values in labels.values():
                values[outside] = -1
        while len(self._kept) >= self._cache:
            self._kept.popitem(last=False)
        self._kept[record] = labels
        return labels

    def labelled(self, record: int) -> NDArray[np.bool_]:
        """[E], which epochs of the recording carry ``target``."""
        return self.of(record)[self._target] >= 0

    def _stored(self, record: int, name: str) -> NDArray[np.int8]:
        def read(anew: bool) -> NDArray[np.int8]:
            values: NDArray[Any] = read_epochwise(self._dataset, self._reader, record, label_member(name), np.int8, 1, anew)[0]
            self._check(record, name, values)
            return values

        return checked(self._dataset, read)

    def _check(self, record: int, name: str, values: NDArray[np.int8]) -> None:
        """Labels have no checksum, but the manifest knows how many epochs have which: any one changed byte shows."""
        expected = self._dataset.label_counts(name)[record]
        top = len(STAGE_NAMES) - 1 if name == "stage" else 1
        found = np.bincount(values[values >= 0], minlength=top + 1)
        if values.min() < -1 or len(found) > top + 1 or not np.array_equal(found[-len(expected) :], expected):
            shard = self._dataset.shard_name(int(self._dataset.shard_of[record]))
            raise ShardError(
                f"{shard}: labels {name!r} of {self._dataset.names[record]} differ from what the manifest counts; restore it "
                "or build again"
            )

    def _draw(self, target: NDArray[np.int8], name: str) -> NDArray[np.bool_]:
        order = permutation(len(target), self._seed, zlib.crc32(name.encode()))
        drawn = np.zeros(len(target), np.bool_)
        for value in np.unique(target[target >= 0]):
            members = order[target[order] == value]
            drawn[members[: max(1, round(self._fraction * len(members)))]] = True
        return drawn


def label_rule(name: str) -> LabelRule:
    """How ``name``, a task or a stored label, is read. Raises :class:`DatasetError` for neither."""
    if name in TASKS:
        return TASKS[name].label
    if name not in LABELS:
        raise DatasetError(f"unknown label {name!r}; a data set holds {', '.join(LABELS)}, the tasks are {', '.join(TASKS)}")
    return LabelRule(name)


def stored_labels(names: Sequence[str]) -> tuple[str, ...]:
    """The members that hold what ``names``, tasks or stored labels, are read from."""
    return tuple(sorted({label_member(label_rule(name).stored) for name in names}))


def checked(dataset: Dataset, read: Callable[[bool], T]) -> T:
    """What ``read(anew)`` gives. What fails its check behind a URL is fetched anew, once: the copy in the cache may be bad.

    Raises:
        ShardError: what ``read`` raises, at last.
    """
    try:
        return read(False)
    except ShardError:
        if dataset.remote is None:
            raise
        return read(True)


def read_epochwise(
    dataset: Dataset,
    reader: ShardReader,
    record: int,
    member: str,
    dtype: type[np.generic],
    rows: int = 1,
    anew: bool = False,
) -> NDArray[np.generic]:
    """A member with one value an epoch, joined over the samples of a recording: [rows, E]; behind a URL fetched ``anew``.

    Raises:
        ShardError: the shard is missing or ends early.
        DatasetError: the data set does not hold the member.
    """
    first, epochs = int(dataset.first_segment[record]), int(dataset.n_epochs[record])
    offsets = dataset.offsets(member)
    values = np.empty((rows, epochs), dtype)
    reader.have(member_ranges(dataset, np.array([record]), (member,)))
    for begin in range(0, epochs, dataset.segment_epochs):
        count = min(dataset.segment_epochs, epochs - begin)
        offset = int(offsets[first + begin // dataset.segment_epochs])
        if offset < 0:
            raise DatasetError(f"{dataset.origin}: {dataset.names[record]} has no member {member}")
        content = reader.read_bytes(int(dataset.shard_of[record]), offset, rows * count * values.itemsize, anew)
        values[:, begin : begin + count] = np.frombuffer(content, values.dtype).reshape(rows, count)
    return values


def usable_epochs(dataset: Dataset, reader: ShardReader, record: int) -> NDArray[np.bool_]:
    """[C, E], epochs without any of the quality flags that the data set excludes, channels as in the recording.

    Raises:
        ShardError: the shard is missing or ends early.
    """
    return (_quality(dataset, reader, record) & np.uint8(dataset.description["quality_mask"])) == 0


def _quality(dataset: Dataset, reader: ShardReader, record: int) -> NDArray[np.uint8]:
    rows = int(dataset.present[record].sum())
    quality = read_epochwise(dataset, reader, record, QUALITY_MEMBER, np.uint8, rows)
    if dataset.remote is not None and _miscounted(dataset, record, quality).any():
        quality = read_epochwise(dataset, reader, record, QUALITY_MEMBER, np.uint8, rows, anew=True)
    return quality  # type: ignore[return-value]


def _miscounted(dataset: Dataset, record: int, quality: NDArray[Any]) -> NDArray[np.bool_]:
    """Of which channels of a recording, in the order of :data:`CHANNELS`, quality tells another number of good epochs than the
    manifest.
    """
    numbers = np.flatnonzero(dataset.present[record])
    good = (quality & np.uint8(dataset.description["quality_mask"])) == 0
    return good.sum(axis=1)[dataset.channel_row[record, numbers]] != dataset.usable[record, numbers]


def epochs_with_any(dataset: Dataset, reader: ShardReader, record: int, channels: Sequence[str]) -> NDArray[np.bool_]:
    """[E], epochs in which one of ``channels`` is usable; all where none is named.

    Raises:
        ShardError: the shard is missing or ends early, or its quality is corrupt.
    """
    if not channels:
        return np.ones(int(dataset.n_epochs[record]), np.bool_)
    numbers = np.array([CHANNELS.index(channel) for channel in channels])
    return np.asarray(RecordPresence(dataset, reader, numbers).of(record).any(axis=1), dtype=bool)


class RecordPresence:
    """Which of ``channels`` (indices in CHANNELS) a recording has in each epoch, [E, C], the last ``cache`` recordings kept.

    A channel is absent where the recording lacks it and where its quality has one of
    :data:`sleepfm.signals.quality.UNUSABLE`, whatever else the data set excludes from pretraining: as in scoring.
    """

    def __init__(self, dataset: Dataset, reader: ShardReader, channels: NDArray[np.int64], cache: int = 4096) -> None:
        self._dataset, self._reader, self._channels, self._cache = dataset, reader, channels, cache
        self._kept: OrderedDict[int, NDArray[np.bool_]] = OrderedDict()

    def of(self, record: int) -> NDArray[np.bool_]:
        """[E, C] of the recording in row ``record``. Raises :class:`ShardError` if unreadable or corrupt."""
        if record in self._kept:
            self._kept.move_to_end(record)
            return self._kept[record]
        quality = _quality(self._dataset, self._reader, record)
        self._check(record, quality)
        row = self._dataset.channel_row[record, self._channels]
        there = np.zeros((quality.shape[1], len(self._channels)), np.bool_)
        there[:, row >= 0] = (quality[row[row >= 0]] & np.uint8(UNUSABLE)).T == 0
        while len(self._kept) >= self._cache:
            self._kept.popitem(last=False)
        self._kept[record] = there
        return there

    def _check(self, record: int, quality: NDArray[np.uint8]) -> None:
        """Quality has no checksum, but the manifest knows how many epochs of each channel are usable."""
        numbers = np.flatnonzero(self._dataset.present[record])
        good = (quality & np.uint8(self._dataset.description["quality_mask"])) == 0
        found = good.sum(axis=1)[self._dataset.channel_row[record, numbers]]
        expected = self._dataset.usable[record, numbers]
        for number in np.flatnonzero(_miscounted(self._dataset, record, quality))[:1]:
            shard = self._dataset.shard_name(int(self._dataset.shard_of[record]))
            raise ShardError(
                f"{shard}: quality of {CHANNELS[numbers[number]]} tells {found[number]} good epochs of "
                f"{self._dataset.names[record]}, the manifest {expected[number]}; restore it or build again"
            )
