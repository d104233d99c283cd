"""A mixture of streams over shards."""

from __future__ import annotations

from collections.abc import Mapping

from sleepfm.data.batch import Batch
from sleepfm.data.identity import DataDigest
from sleepfm.data.mixed_stream import MixedStream
from sleepfm.data.report import ReadReport
from sleepfm.data.stream import Noise, Reading, Stream
from sleepfm.data.tolerance import Tolerance, TooManyCorruptError


class MixedShardStream(MixedStream):
    """A :class:`MixedStream` over streams of shards, which processes can read too; ``report`` is that of all of them."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        data: DataDigest,
        reading: Reading,
        report: ReadReport,
        noise: Noise | None = None,
        natural: bool = False,
    ) -> None:
        super().__init__(streams, data, reading.seed, noise, natural, reading.partitions, reading.block)
        self.report, self.workers = report, reading.workers
        self._tolerance = Tolerance(reading.max_corrupt)

    def tolerated(self, start: int, count: int) -> float:
        """As of any :class:`~sleepfm.data.stream.Stream`; the share is that of the whole mixture."""
        return self._tolerance.asked(start, count, len(self))

    def batch(self, start: int, count: int, tolerated: float | None = None) -> Batch:
        """As of any :class:`~sleepfm.data.stream.Stream`.

        Raises:
            ShardError: the corrupt items met in all sources are more than are tolerated.
        """
        bound = self.tolerated(start, count) if tolerated is None else tolerated
        return self._joined(start, count, lambda stream, first, length: stream.batch(first, length, bound))

    def too_many(self, why: str = "") -> TooManyCorruptError:
        """The error that ends reading, from a source that is in trouble."""
        troubled = [name for name, trouble in self.report.shards.items() if trouble.faults]
        own = [stream for stream in self.streams if any(name.startswith(stream.dataset.origin) for name in troubled)]
        error = (own or self.streams)[0].too_many(why)
        return TooManyCorruptError(f"mixture of {', '.join(self.names)}: {error}", error.why)
