"""Rows of onset, duration and text, which every event format comes down to, as a scoring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.doubt import LONGEST, TEXT, Doubts
from sleepfm.signals.scorings.event_words import KNOWN, EventWords
from sleepfm.signals.scorings.scoring import Event, Row, Scoring, StageInterval
from sleepfm.signals.scorings.stage_texts import check_runs, refuse_unknown, standing_as_stages
from sleepfm.signals.scorings.vocabulary import is_beside_the_point, mentions_a_stage, names_a_stage, stage_of

__all__ = ["MAX_ROWS", "Row", "iter_lines", "scoring_of_rows"]

# No scoring of a night has more; a file that does is none, and is not held in memory.
MAX_ROWS = 100_000
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
    words: EventWords = KNOWN,
    seconds_assumed: bool = False,
) -> Scoring:
    """Stages and events among ``rows``; a stage without an end lasts until the next one, at most an epoch.

    An event whose time is none is left out, with a warning, and nothing is said of what it may touch: of one without an onset, of
    the whole night. One without a duration counts where it begins, and nothing is said of the minute after.

    Args:
        stage: which stage a text names.
        stages: stages that the format keeps apart from its events; ``rows`` then are events alone.
        has_events: the format always says whether there were events.
        words: which event a text names.
        seconds_assumed: nothing in the file says that its epochs have 30 s, or its times are seconds.

    Raises:
        StageTextError: a text where stages stand that is not understood, or stages without durations that may be runs of epochs.
        AnnotationError: no stage among them, or a stage whose time is none.
    """
    found: list[tuple[Row, Stage]] = []
    events: list[tuple[Row, str]] = []
    unclear: list[Row] = []
    others: list[Row] = []
    unknown_stages: Counter[str] = Counter()
    sound: list[Row] = []
    damaged: list[Row] = []

    def stage_in(row: Row) -> Stage | None:
        return None if stages or (row.group != "stage" and words.is_own(row.text)) else stage(row.text)

    def may_be_a_stage(row: Row) -> bool:
        return row.group == "stage" or (not stages and not words.is_own(row.text) and names_a_stage(row.text))

    for row in rows:
        (sound if abs(row.onset) <= LONGEST and 0 <= (row.duration or 0.0) <= LONGEST else damaged).append(row)
    for row in damaged:
        if stage_in(row) is not None or may_be_a_stage(row):
            raise AnnotationError(f"{name}: {row.text[:TEXT]!r} is at {row.onset:g} s for {row.duration or 0.0:g} s; damaged")
    lost = [row for row in damaged if words.tells_an_event(row.text, row.group)]
    notes = [row for row in damaged if not words.tells_an_event(row.text, row.group)]
    placeless = [Row(0.0, 0.0, row.text) for row in notes]
    ordered = sorted(sound, key=lambda item: item.onset)
    for row in ordered:
        if (value := stage_in(row)) is not None:
            found.append((row, value))
        elif row.group == "stage" and mentions_a_stage(row.text):
            # An event beside a stage in one text, where a stage alone has its place.
            unknown_stages[row.text[:TEXT]] += 1
        elif event := words.event_of(row.text):
            events.append((row, event))
        elif words.is_unclear(row.text, row.group):
            unclear.append(row)
        elif may_be_a_stage(row):
            unknown_stages[row.text[:TEXT]] += 1
        else:
            others.append(row)
    ends = [*(row.onset for row, _ in found[1:]), math.inf][: len(found)]
    own = [
        StageInterval(row.onset, row.duration or min(EPOCH_SECONDS, end - row.onset), int(value))
        for (row, value), end in zip(found, ends, strict=True)
    ] or list(stages)
    if found and not unknown_stages:
        strange = [row for row in (*placeless, *others) if not is_beside_the_point(row.text)]
        for text, count in standing_as_stages(ordered, strange, own).items():
            unknown_stages[text[:TEXT]] += count
    if unknown_stages:
        # Of a row whose times are damaged there is no telling.
        first = next((row.onset for row in ordered if row.text[:TEXT] in unknown_stages), None)
        refuse_unknown(unknown_stages, name, first)
    if not own:
        raise AnnotationError(f"{name}: {source} has no stage; export the sleep stages too")
    warnings += check_runs(found, name)
    # A remark on breathing that is a moment is no sign that events were scored.
    has_events = has_events or bool(events or lost) or any(row.duration or row.group == "respiratory" for row in unclear)
    doubts, doubtful = Doubts(), set[Row]()
    if has_events:
        strange = [row for row in notes if abs(row.onset) <= LONGEST and not is_beside_the_point(row.text)]
        doubts.add_without_times([*lost, *strange], words)
        doubts.add_without_lengths(events)
        timed = [*(row for row, _ in events), *unclear]
        doubtful = {*strange, *doubts.add_not_understood(others, not timed or any(row.duration for row in timed))}
    doubts.add_unclear(unclear)
    ignored = [row for row in others if row not in doubtful]
    ignored += [zero for row, zero in zip(notes, placeless, strict=True) if row not in doubtful]
    return Scoring(
        stages=tuple(sorted(own, key=lambda item: item.onset)),
        events=tuple(
            sorted(
                (Event(row.onset, row.duration or 0.0, kind) for row, kind in events), key=lambda item: (item.onset, item.type)
            )
        ),
        source=source,
        has_events=has_events,
        whole_night=whole_night,
        unclear=tuple(sorted(doubts.unclear, key=lambda item: item.onset)),
        untimed=tuple(doubts.untimed),
        ignored=_most_frequent(Counter(row.text[:TEXT] for row in ignored)),
        others=tuple(Event(row.onset, row.duration or 0.0, row.text[:TEXT]) for row in ignored),
        warnings=(*warnings, *doubts.warnings),
        seconds_assumed=seconds_assumed,
    )


def _most_frequent(texts: Counter[str]) -> dict[str, int]:
    kept = dict(texts.most_common(_REPORTED))
    rest = texts.total() - sum(kept.values())
    return {**kept, "...": rest} if rest else kept
