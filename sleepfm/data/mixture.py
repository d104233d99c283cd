"""The data of a job: one data set, or several of which each gives a share of the items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sleepfm.data.dataset import Dataset, read_description
from sleepfm.data.identity import DataDigest, Part, source_names
from sleepfm.data.mixed_shards import MixedShardStream
from sleepfm.data.mixed_stream import MixedStream
from sleepfm.data.order import Index
from sleepfm.data.persons import check_persons
from sleepfm.data.report import ReadReport
from sleepfm.data.stream import Noise, Reading
from sleepfm.errors import ConfigError, DatasetError, EmptySplitError

# Of the files that one process may have open, those of the shards of all sources.
_OPEN_FILES = 64
_FEWEST_OPEN = 4
StreamT = TypeVar("StreamT")
T = TypeVar("T")


@dataclass(frozen=True)
class SourcePlan:
    """A data set as it is asked for: folder or URL, name (from the path if empty), and its share."""

    path: str
    name: str = ""
    weight: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class DataSource:
    """An open data set of a mixture."""

    part: Part
    dataset: Dataset

    @property
    def name(self) -> str:
        return self.part.name


class Mixture:
    """Data sets, sorted by their digests, of which each gives a share of the items; of one, it is that data set and no more.

    Shares are stated for all sources or for none: ``weight`` (relative to the others') or ``epochs`` (how often a pass of the
    mixture goes over the source). Without, they are by size, see :func:`sleepfm.data.interleave.items_a_pass`.

    ``digest`` is that of all data sets together. ``origin`` names them in messages.
    """

    def __init__(self, sources: Sequence[DataSource], temperature: float = 1.0) -> None:
        """Raises :class:`DatasetError`: the same data set twice, or a person in different splits of two of them."""
        self.digest = DataDigest([source.part for source in sources], temperature)
        by_digest = {source.part.digest: source for source in sources}
        _all_different(self.digest)
        self.sources = tuple(by_digest[part.digest] for part in self.digest.parts)
        self.origin = ", ".join(source.dataset.origin for source in self.sources)
        if len(self.sources) > 1:
            check_persons({source.name: source.dataset for source in self.sources})

    @classmethod
    def open(cls, plans: Sequence[SourcePlan], temperature: float = 1.0) -> Mixture:
        """Open every data set.

        Raises:
            ConfigError: two of the same name.
            DatasetError: see :meth:`Dataset.open` and above, of every data set that cannot be opened.
        """
        datasets = _each(plans, Dataset.open)
        parts = _parts(plans, [dataset.digest for dataset in datasets])
        return cls([DataSource(part, dataset) for part, dataset in zip(parts, datasets, strict=True)], temperature)

    @classmethod
    def of(cls, data: Dataset | Mixture) -> Mixture:
        """A mixture, or the one of a data set alone."""
        if isinstance(data, Mixture):
            return data
        return cls([DataSource(Part(source_names([("", data.origin)])[0], data.digest, data.origin), data)])

    @property
    def datasets(self) -> list[Dataset]:
        """The data sets of all sources."""
        return [source.dataset for source in self.sources]

    def select(self, split: str, channels: Sequence[str] = ()) -> list[tuple[DataSource, Index]]:
        """The sources with recordings of ``split`` that have any of ``channels`` (see :meth:`Dataset.select`), and their rows.

        Raises:
            EmptySplitError: no source has one.
            DatasetError: an unknown split or channel.
        """
        return self.where_not_empty(lambda source: source.dataset.select(split, channels))

    def where_not_empty(self, make: Callable[[DataSource], T]) -> list[tuple[DataSource, T]]:
        """What ``make`` gives of each source that has what it asks for.

        Raises:
            EmptySplitError: of the last source, where none has.
        """
        found, empty = [], None
        for source in self.sources:
            try:
                found.append((source, make(source)))
            except EmptySplitError as error:
                empty = error
        if not found:
            assert empty is not None
            raise empty
        return found

    def stream(
        self,
        make: Callable[..., StreamT],
        reading: Reading,
        noise: Noise | None = None,
        natural: bool = False,
        gaps: bool = False,
    ) -> StreamT | MixedShardStream:
        """A stream of the items of all sources, in the order of the mixture; of one data set, its own stream.

        Args:
            make: called with each data set, ``reading``, ``noise`` and ``report``, which its stream takes.
            noise: draws that of the items of the mixture.
            natural: whether sources give items by their size, whatever their shares, and those without an item are left out: what
                is validated does not depend on how training is mixed.
            gaps: whether sources without an item are left out where shares hold, too: of few labels some may have none.

        Raises:
            EmptySplitError: a source (with ``natural`` or ``gaps``, every source) has no item.
        """
        if len(self.sources) == 1:
            return make(self.sources[0].dataset, reading=reading, noise=noise, report=None)
        report = ReadReport(reading.slow_seconds)
        own = replace(reading, max_open=max(_FEWEST_OPEN, _OPEN_FILES // len(self.sources)))
        streams = self._streams(lambda source: make(source.dataset, reading=own, noise=None, report=report), natural or gaps)
        return MixedShardStream(streams, self.digest, reading, report, noise, natural)

    def in_memory(
        self, make: Callable[..., StreamT], seed: int, noise: Noise | None = None, natural: bool = False, gaps: bool = False
    ) -> StreamT | MixedStream:
        """The same of streams that read nothing from shards: ``make`` is called with each source, its ``seed`` and ``noise``."""
        if len(self.sources) == 1:
            return make(self.sources[0], seed=seed, noise=noise)
        streams = self._streams(lambda source: make(source, seed=seed, noise=None), natural or gaps)
        return MixedStream(streams, self.digest, seed, noise, natural)

    def _streams(self, make: Callable[[DataSource], Any], gaps: bool) -> dict[str, Any]:
        """By the digest of each source."""
        found = self.where_not_empty(make) if gaps else [(source, make(source)) for source in self.sources]
        return {source.part.digest: stream for source, stream in found}

    def label(self, source: DataSource, name: str) -> str:
        """``name`` of a recording or a person of ``source`` among those of all sources."""
        return name if len(self.sources) == 1 else f"{source.name}/{name}"

    def person(self, source: DataSource, row: int) -> str:
        """Key of the person of recording ``row`` of ``source``: somebody in two data sets of one cohort is one person."""
        dataset = source.dataset
        return dataset.subjects[row] if len(self.sources) == 1 else f"{dataset.cohorts[row]}/{dataset.subjects[row]}"

    def find(self, record: str) -> tuple[Dataset, int]:
        """The data set and the row of the recording that :meth:`label` names. Raises :class:`DatasetError`: there is none."""
        if len(self.sources) == 1:
            return self.sources[0].dataset.find(record)
        name, _, own = record.partition("/")
        for source in self.sources:
            if source.name == name:
                return source.dataset.find(own)
        raise DatasetError(f"{self.origin}: no recording {record!r}; the sources are {', '.join(s.name for s in self.sources)}")


def read_digest(plans: Sequence[SourcePlan], temperature: float = 1.0) -> DataDigest:
    """The digest of the data sets that ``plans`` name, without opening them.

    Raises:
        ConfigError: two of the same name.
        DatasetError: those that are no data sets, or the same one twice.
    """
    found = DataDigest(_parts(plans, _each(plans, lambda path: str(read_description(path)["digest"]))), temperature)
    _all_different(found)
    return found


def _each(plans: Sequence[SourcePlan], read: Callable[[str], T]) -> list[T]:
    """What ``read`` gives of the path of each plan. Raises the errors of all as one, which has the class of the first."""
    found, errors = [], []
    for plan in plans:
        try:
            found.append(read(plan.path))
        except (ConfigError, DatasetError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = ConfigError if isinstance(errors[0], ConfigError) else DatasetError
        raise kind(f"{len(errors)} of {len(plans)} sources cannot be read: {'; '.join(map(str, errors))}") from errors[0]
    return found


def _parts(plans: Sequence[SourcePlan], digests: Sequence[str]) -> list[Part]:
    names = source_names([(plan.name, str(plan.path)) for plan in plans])
    return [
        Part(name, found, plan.path, plan.weight, plan.epochs) for name, found, plan in zip(names, digests, plans, strict=True)
    ]


def _all_different(digest: DataDigest) -> None:
    same = [
        f"{one.name} ({one.path}) and {other.name} ({other.path}) are the same data set {one.digest[:12]}"
        for one, other in zip(digest.parts, digest.parts[1:], strict=False)
        if one.digest == other.digest
    ]
    if same:
        raise ConfigError(f"data.sources: {'; '.join(same)}; give each only once, with the share of both")
