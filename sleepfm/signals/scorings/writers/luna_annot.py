"""Luna's ``.annot`` (zzz.bwh.harvard.edu/luna/ref/annotations); read back by :mod:`sleepfm.signals.scorings.luna_annot`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.numbers import shortest


def luna_annot(rows: Iterable[Event], time: Callable[[float], str] = shortest) -> str:
    """The file's text: a row for each of ``rows``, whose type is its class, with ``time`` for start and stop.

    Elapsed seconds by default, which need no clock of the recording.
    """
    lines = [f"{row.type}\t.\t.\t{time(row.onset)}\t{time(row.onset + row.duration)}\t." for row in rows]
    return "\n".join(["class\tinstance\tchannel\tstart\tstop\tmeta", *lines, ""])
