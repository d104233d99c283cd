"""Clock times of scorings, with or without a date, as seconds from the start of the recording."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

_DAY = timedelta(days=1)
# How long before the recording a clock time without a date may lie, rather than a day later.
_EARLIEST = timedelta(hours=6)
_TIME = r"(\d{1,2})[:.](\d{2})[:.](\d{2})(?:[.,](\d{1,9}))?\s*([AaPp][Mm])?"
_CLOCK = re.compile(_TIME)
_ELAPSED = re.compile(r"(\d{1,3}):(\d{2}):(\d{2})(?:[.,](\d{1,9}))?")
_DATED = re.compile(r"(\d{1,4})[/.\-](\d{1,2}|[A-Za-z]{3})[/.\-](\d{1,4})[ T\-]+" + _TIME)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def is_clock(text: str) -> bool:
    """Whether ``text`` is a clock time, with or without a date."""
    return _CLOCK.fullmatch(text.strip()) is not None or _DATED.fullmatch(text.strip()) is not None


def has_date(text: str) -> bool:
    """Whether ``text`` is a clock time with a date."""
    return _DATED.fullmatch(text.strip()) is not None


def elapsed_seconds(text: str) -> float | None:
    """Seconds that ``text`` (h:mm:ss, with or without decimals) says if it counts from a start, None if it cannot."""
    match = _ELAPSED.fullmatch(text.strip())
    if match is None or int(match[2]) > 59 or int(match[3]) > 59:
        return None
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]) + float(f"0.{match[4] or 0}")


def time_of_day(text: str) -> float | None:
    """Seconds since midnight of the time of day that ends ``text``; None without one, or for 00:00:00, which means unknown."""
    match = _CLOCK.fullmatch((text.split() or [""])[-1])
    try:
        return _time(match, 0).total_seconds() or None if match else None
    except ValueError:
        return None


def seconds_apart(clock: float, start: datetime) -> float:
    """How long after ``start`` the nearest time of day ``clock`` is, in s; negative where it is before."""
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    day = _DAY.total_seconds()
    return (clock - (start - midnight).total_seconds() + day / 2) % day - day / 2


class Clock:
    """Reads clock times, having decided once whether the day or the month comes first.

    Args:
        texts: all times of the file.
        start: date and time of the recording's first sample.
        duration: length of the recording in s, if it is known.

    Raises:
        ValueError: dates of no known order.
    """

    def __init__(self, texts: Sequence[str], start: datetime, duration: float | None = None) -> None:
        self._start = start
        rest = _DAY if duration is None or duration < 0 else _DAY - timedelta(seconds=min(duration, _DAY.total_seconds()))
        self._earliest = min(_EARLIEST, rest)
        fields = [match for text in texts if (match := _DATED.fullmatch(text.strip()))]
        orders = [order for order in ("dmy", "mdy", "ymd") if self._fits(fields, order)]
        if not orders:
            raise ValueError(f"{fields[0][0]!r} is not a known form of date and time")
        # Where both day first and month first give dates, the recording's own date decides.
        near = [order for order in orders if fields and abs(_date(fields[0], order) - start) < _DAY]
        self._order = (near or orders)[0]

    def read(self, text: str) -> float:
        """Seconds from the recording's start to the time ``text``. Raises :class:`ValueError`."""
        text = text.strip()
        dated = _DATED.fullmatch(text)
        if dated is not None:
            return (_date(dated, self._order) - self._start).total_seconds()
        match = _CLOCK.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a clock time")
        midnight = self._start.replace(hour=0, minute=0, second=0, microsecond=0)
        since = midnight + _time(match, 0) - self._start
        # In whole microseconds: two rows of one time have one onset, whichever of them has a date.
        return ((since + self._earliest) % _DAY - self._earliest).total_seconds()

    @staticmethod
    def _fits(fields: Sequence[re.Match[str]], order: str) -> bool:
        try:
            for match in fields:
                _date(match, order)
        except (ValueError, OverflowError):
            return False
        return True


def _date(match: re.Match[str], order: str) -> datetime:
    numbers = dict(zip(order, (_number(match[i]) for i in (1, 2, 3)), strict=True))
    year = numbers["y"]
    if year < 100 and order.endswith("y"):
        # Two digits of a year as EDF has them.
        year += 1900 if year >= 85 else 2000
    if year < 1000:
        raise ValueError("a date that begins with the year needs four digits for it")
    return datetime(year, numbers["m"], numbers["d"]) + _time(match, 3)


def _number(text: str) -> int:
    return _MONTHS.index(text.lower()) + 1 if text.isalpha() else int(text)


def _time(match: re.Match[str], before: int) -> timedelta:
    hour, minute, second = (int(match[before + i]) for i in (1, 2, 3))
    if match[before + 5]:
        hour = hour % 12 + (12 if match[before + 5].lower() == "pm" else 0)
    if hour > 24 or minute > 59 or second > 60:
        raise ValueError(f"{match[0]!r} is not a time of day")
    return timedelta(hours=hour, minutes=minute, seconds=second + float(f"0.{match[before + 4] or 0}"))
