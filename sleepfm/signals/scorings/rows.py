"""Rows of onset, duration and text, which every event format comes down to, as a scoring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.scoring import Event, Row, Scoring, StageInterval
from sleepfm.signals.scorings.stage_texts import refuse_unknown, standing_as_stages
from sleepfm.signals.scorings.vocabulary import (
    event_of,
    is_beside_the_point,
    is_respiratory,
    mentions_a_stage,
    names_a_stage,
    stage_of,
)

__all__ = ["MAX_ROWS", "Row", "iter_lines", "scoring_of_rows"]

# No scoring of a night has more; a file that does is none, and is not held in memory.
MAX_ROWS = 100_000
_LONGEST = 1e9
_TEXT = 80
# How far an event without a length may reach; few breathe less for longer.
_REACH = 60.0
# Distinct texts that are reported of a night; technicians' remarks can be hundreds.
_REPORTED = 50


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
        StageTextError: a text where stages stand that is not understood.
        AnnotationError: no stage among them, or a stage whose time is none. An event whose time is none is left out, with a
            warning, and nothing is said of what it may touch: of one without an onset, of the whole night.
    """
    found: list[tuple[Row, Stage]] = []
    events: list[Event] = []
    unclear: list[Event] = []
    others: list[Row] = []
    unknown_stages: Counter[str] = Counter()
    sound: list[Row] = []
    damaged: list[Row] = []
    for row in rows:
        (sound if abs(row.onset) <= _LONGEST and 0 <= (row.duration or 0.0) <= _LONGEST else damaged).append(row)
    for row in damaged:
        if row.group == "stage" or (not stages and (stage(row.text) is not None or names_a_stage(row.text))):
            raise AnnotationError(f"{name}: {row.text[:_TEXT]!r} is at {row.onset:g} s for {row.duration or 0.0:g} s; damaged")
    lost = [row for row in damaged if tells_an_event(row.text, row.group)]
    others += [Row(0.0, 0.0, row.text) for row in damaged if not tells_an_event(row.text, row.group)]
    untimed, doubtful, told = _without_times(lost)
    unclear += doubtful
    ordered = sorted(sound, key=lambda item: item.onset)
    for row in ordered:
        if not stages and (value := stage(row.text)) is not None:
            found.append((row, value))
        elif row.group == "stage" and mentions_a_stage(row.text):
            # An event beside a stage in one text, where a stage alone has its place.
            unknown_stages[row.text[:_TEXT]] += 1
        elif event := event_of(row.text):
            events.append(Event(row.onset, row.duration or 0.0, event))
        elif is_respiratory(row.text) or (row.group == "respiratory" and not is_beside_the_point(row.text)):
            unclear.append(_named(row))
        elif row.group == "stage" or (not stages and names_a_stage(row.text)):
            unknown_stages[row.text[:_TEXT]] += 1
        else:
            others.append(row)
    ends = [*(row.onset for row, _ in found[1:]), math.inf][: len(found)]
    own = [
        StageInterval(row.onset, row.duration or min(EPOCH_SECONDS, end - row.onset), int(value))
        for (row, value), end in zip(found, ends, strict=True)
    ] or list(stages)
    if found and not unknown_stages:
        strange = [row for row in others if not is_beside_the_point(row.text)]
        for text, count in standing_as_stages(ordered, strange, own).items():
            unknown_stages[text[:_TEXT]] += count
    if unknown_stages:
        # Of a row whose times are damaged there is no telling.
        first = next((row.onset for row in ordered if row.text[:_TEXT] in unknown_stages), None)
        refuse_unknown(unknown_stages, name, first)
    if not own:
        raise AnnotationError(f"{name}: {source} without a single stage; export the sleep stages too")
    return Scoring(
        stages=tuple(sorted(own, key=lambda item: item.onset)),
        events=tuple(sorted(events, key=lambda item: (item.onset, item.type))),
        source=source,
        has_events=has_events or bool(events) or bool(unclear) or bool(untimed),
        whole_night=whole_night,
        unclear=tuple(sorted(unclear, key=lambda item: item.onset)),
        untimed=tuple(untimed),
        ignored=_most_frequent(Counter(row.text[:_TEXT] for row in others)),
        others=tuple(_named(row) for row in others),
        warnings=(*warnings, *told),
    )


def tells_an_event(text: str, group: str = "") -> bool:
    """Whether a row is an event, or a respiratory text that may be one."""
    if event_of(text) is not None:
        return True
    return not is_beside_the_point(text) and (is_respiratory(text) or group == "respiratory")


def _without_times(damaged: Sequence[Row]) -> tuple[list[Event], list[Event], tuple[str, ...]]:
    """Events whose times are none: other ones and respiratory ones over what they may touch, and a warning."""
    untimed: list[Event] = []
    doubtful: list[Event] = []
    lost: list[str] = []
    for row in damaged:
        kind = event_of(row.text)
        if abs(row.onset) <= _LONGEST:
            lost.append(f"{row.text[:_TEXT]!r} at {row.onset:g} s for {row.duration or 0.0:g} s")
            # An end before the start may be a wrong sign or both in turn.
            wrong = row.duration is not None and -_LONGEST <= row.duration < 0
            back = min(-(row.duration or 0.0), _REACH) if wrong else 0.0
            begin, lasts = row.onset - back, back + (back or _REACH)
        else:
            lost.append(f"{row.text[:_TEXT]!r} at a time that cannot be read, so that it may be anywhere in the night")
            begin, lasts = 0.0, _LONGEST
        if kind in ("arousal", "desaturation"):
            untimed.append(Event(begin, lasts, kind))
        else:
            doubtful.append(Event(begin, lasts, row.text[:_TEXT]))
    if not lost:
        return [], [], ()
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    told = f"{len(lost)} events whose times cannot be are left out, what they may touch has no label: {', '.join(lost[:3])}{more}"
    return untimed, doubtful, (told,)


def stands_as_stage(text: str, group: str = "") -> bool:
    """Whether a row is one of those that a scoring cannot do without."""
    return group == "stage" or stage_of(text) is not None or names_a_stage(text)


def _named(row: Row) -> Event:
    """The row as an event whose type is its text."""
    return Event(row.onset, row.duration or 0.0, row.text[:_TEXT])


def _most_frequent(texts: Counter[str]) -> dict[str, int]:
    kept = dict(texts.most_common(_REPORTED))
    rest = texts.total() - sum(kept.values())
    return {**kept, "...": rest} if rest else kept
