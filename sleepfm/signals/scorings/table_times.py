"""Onsets and durations of a table's rows as seconds: numbers, times of day, or times since the recording's start."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.clock import Clock, elapsed_seconds, has_date, is_clock
from sleepfm.signals.scorings.table_columns import Columns


class TableTimes:
    """Reads the times of one table, having decided once what 01:02:03 means in it.

    It is a time of day, unless the title says ``elapsed``. Where the title says nothing, times without a date are elapsed if they
    begin at 0 and lie in the recording only so. Times that lie in it both ways are of day if they begin with it, else refused.

    Args:
        texts: all onsets of the table.
        start, duration: of the recording.

    Raises:
        AnnotationError: times of day and ``start`` is not known; dates of no known order; or both readings lie in the recording.
    """

    def __init__(
        self, texts: Sequence[str], columns: Columns, path: PurePath, start: datetime | None, duration: float | None
    ) -> None:
        self._columns = columns
        self._clock: Clock | None = None
        self.warnings: tuple[str, ...] = ()
        times = [text for text in texts if is_clock(text)]
        if not times or columns.times == "elapsed":
            return
        if start is None:
            raise AnnotationError(
                f"{path}: has clock times, but the start of its recording is unknown; repair the header of the recording, or "
                "call the column `elapsed time` if they count from its start"
            )
        try:
            self._clock = Clock(times, start, duration)
            if columns.times or duration is None or any(map(has_date, times)):
                return
            since_start = [value for text in times if (value := elapsed_seconds(text)) is not None]
            if len(since_start) < len(times) or not _inside(since_start, duration):
                return
            of_day = [self._clock.read(text) for text in times]
        except ValueError as error:
            raise AnnotationError(f"{path}: {error}") from error
        shift = abs(of_day[0] - since_start[0])
        if _inside(of_day, duration) and (shift < 1 or min(of_day) <= EPOCH_SECONDS < min(since_start)):
            return  # as times of day they begin with the recording, as scorings do
        if _inside(of_day, duration):
            raise AnnotationError(
                f"{path}: its times from {times[0]} may be times of day, or times since the start of the recording "
                f"({start:%H:%M:%S}); "
                "call the column `clock time` or `elapsed time`"
            )
        if min(since_start) > EPOCH_SECONDS:
            return  # times of day of another night
        self._clock = None
        self.warnings = (f"the scoring's times from {times[0]} are taken to count from the recording's start",)

    def onset(self, text: str, where: str) -> float:
        """Seconds from the recording's start. Raises :class:`AnnotationError`; ``where`` names the row."""
        if self._clock is None or not is_clock(text):
            return self._number(text, self._columns.begin_unit, where)
        try:
            return self._clock.read(text)
        except ValueError as error:
            raise AnnotationError(f"{where}: {error}") from error

    def length(self, text: str, where: str) -> float:
        """Seconds of a duration. Raises :class:`AnnotationError`."""
        return self._number(text, self._columns.duration_unit, where)

    @staticmethod
    def _number(text: str, unit: float, where: str) -> float:
        if (seconds := elapsed_seconds(text)) is not None:
            return seconds
        try:
            return float(text.strip().replace(",", ".")) * unit
        except (ValueError, OverflowError) as error:
            raise AnnotationError(f"{where}: {text[:40]!r} is neither seconds nor a clock time") from error


def _inside(onsets: Sequence[float], duration: float) -> bool:
    return min(onsets) >= -EPOCH_SECONDS and max(onsets) <= duration + EPOCH_SECONDS
