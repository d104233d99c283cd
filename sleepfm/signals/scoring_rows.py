"""Rows of onset, duration and text, which every event format comes down to, as a scoring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval
from sleepfm.signals.vocabulary import event_of, stage_of

# No scoring of a night has more; a file that does is none, and is not held in memory.
MAX_ROWS = 100_000
_LONGEST = 1e9
_TEXT = 80


def iter_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of every line, one at a time: a list of them can take many times the memory of the text."""
    if "\n" not in text:
        text = text.replace("\r", "\n")
    begin, number = 0, 1
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        yield number, text[begin:end].rstrip("\r")
        begin, number = end + 1, number + 1


@dataclass(frozen=True)
class Row:
    """A text from ``onset`` s for ``duration`` s, None where the file gives no end."""

    onset: float
    duration: float | None
    text: str


def scoring_of_rows(
    rows: Iterable[Row],
    source: str,
    name: str,
    stage: Callable[[str], Stage | None] = stage_of,
    stages: Sequence[StageInterval] = (),
    has_events: bool = False,
    whole_night: bool = False,
    warnings: tuple[str, ...] = (),
) -> Scoring:
    """Stages and events among ``rows``; a stage without an end lasts until the next one, at most an epoch.

    Args:
        stage: which stage a text names.
        stages: stages that the format keeps apart from its events; ``rows`` then are events alone.
        has_events: the format always says whether there were events.

    Raises:
        AnnotationError: no stage among them, or a time that is none.
    """
    found: list[tuple[Row, Stage]] = []
    events: list[Event] = []
    others: list[Event] = []
    ignored: Counter[str] = Counter()
    for row in sorted(rows, key=lambda item: item.onset):
        if not (abs(row.onset) <= _LONGEST and 0 <= (row.duration or 0.0) <= _LONGEST):
            raise AnnotationError(f"{name}: {row.text[:_TEXT]!r} is at {row.onset:g} s for {row.duration or 0.0:g} s; damaged")
        if not stages and (value := stage(row.text)) is not None:
            found.append((row, value))
        elif event := event_of(row.text):
            events.append(Event(row.onset, row.duration or 0.0, event))
        else:
            ignored[row.text[:_TEXT]] += 1
            others.append(Event(row.onset, row.duration or 0.0, row.text[:_TEXT]))
    if not stages and not found:
        raise AnnotationError(f"{name}: {source} without a single stage; export the sleep stages too")
    ends = [row.onset for row, _ in found[1:]] + [math.inf]
    own = (
        [
            StageInterval(row.onset, row.duration or min(EPOCH_SECONDS, end - row.onset), int(value))
            for (row, value), end in zip(found, ends, strict=True)
        ]
        if found
        else stages
    )
    return Scoring(
        stages=tuple(sorted(own, key=lambda item: item.onset)),
        events=tuple(sorted(events, key=lambda item: (item.onset, item.type))),
        source=source,
        has_events=has_events or bool(events),
        whole_night=whole_night,
        ignored=dict(ignored.most_common(20)),
        others=tuple(others),
        warnings=warnings,
    )
