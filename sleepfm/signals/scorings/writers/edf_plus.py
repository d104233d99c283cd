"""EDF+ files of annotations alone (EDF+ specification 2.2); read back by :mod:`sleepfm.signals.scorings.edf_plus`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.numbers import shortest

_HEADER_BYTES = 512
# The specification's largest data record; a longer list goes on in the next.
_RECORD_BYTES = 61_440
# The specification's English months, whatever the machine's language.
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def edf_annotations(rows: Iterable[Event], start: datetime | None, clock: str = "00.00.00") -> bytes:
    """The file: one signal of annotations in records of no duration, as Sleep-EDF's hypnograms have.

    Args:
        rows: texts with onset and duration in s from the recording's first sample; a duration of 0 is not written.
        start: of the recording. Fractions of its seconds are kept, as the onset of the first record.
        clock: time of day ``hh.mm.ss`` where ``start`` is not known; the date is then 01.01.85, unknown in EDF+.
    """
    offset = start.microsecond / 1e6 if start else 0.0
    texts = [_list(row.onset + offset, row.duration, row.type) for row in rows]
    stamp = f"+{shortest(offset)}\x14\x14\0".encode()
    records, filled = [[stamp]], len(stamp)
    for text in texts:
        if filled + len(text) > _RECORD_BYTES:
            records.append([stamp])
            filled = len(stamp)
        records[-1].append(text)
        filled += len(text)
    bodies = [b"".join(record) for record in records]
    size = max(map(len, bodies))
    size += size % 2
    data = b"".join(body.ljust(size, b"\0") for body in bodies)
    return _header(start, clock, len(records), size // 2) + data


def _list(onset: float, duration: float, text: str) -> bytes:
    sign = "-" if onset < 0 else "+"
    lasts = f"\x15{shortest(duration)}" if duration else ""
    return f"{sign}{shortest(abs(onset))}{lasts}\x14{text}\x14\0".encode()


def _header(start: datetime | None, clock: str, records: int, samples: int) -> bytes:
    date, called = "01.01.85", "X"
    if start is not None:
        clock = start.strftime("%H.%M.%S")
        # Which century the two digits mean, the second place says.
        date = f"{start.day:02d}.{start.month:02d}.{start.year % 100:02d}"
        called = f"{start.day:02d}-{_MONTHS[start.month - 1]}-{start.year:04d}"
    fields = [("0", 8), ("X X X X", 80), (f"Startdate {called} X X X", 80), (date, 8), (clock, 8)]
    fields += [(str(_HEADER_BYTES), 8), ("EDF+C", 44), (str(records), 8), ("0", 8), ("1", 4), ("EDF Annotations", 16), ("", 80)]
    fields += [("", 8), ("-1", 8), ("1", 8), ("-32768", 8), ("32767", 8), ("", 80), (str(samples), 8), ("", 32)]
    return "".join(value.ljust(width) for value, width in fields).encode("ascii")
