"""How many corrupt items a run tolerates."""

from __future__ import annotations

from sleepfm.errors import ShardError

# Too few items say nothing about a share; this many corrupt ones are always tolerated.
CORRUPT_FLOOR = 10
MAX_CORRUPT = 0.01


class TooManyCorruptError(ShardError):
    """More corrupt items than are tolerated; ``why`` is the part of the message that says which bound was met."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why


class Tolerance:
    """The corrupt items that are tolerated by the time that a batch has been read.

    A share of the items read, or of what this process reads in a pass if that is more: a missing shard is met all at once. It
    follows from the positions that were asked for alone, so that whoever asks can tell it to the processes that read.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._read = 0
        self._begun: int | None = None
        self._reached = 0

    def asked(self, start: int, count: int, in_a_pass: int) -> float:
        """Note that items ``start .. start + count`` are read, of ``in_a_pass``; how many corrupt ones are
        tolerated by then.
        """
        self._begun = start if self._begun is None else self._begun
        self._reached = max(self._reached, start + count)
        self._read += count
        # Of the positions passed since the first one, this process has read its part, and will in a whole pass.
        own = in_a_pass * min(1.0, self._read / (self._reached - self._begun))
        return max(CORRUPT_FLOOR, self.share * max(self._read, own))
