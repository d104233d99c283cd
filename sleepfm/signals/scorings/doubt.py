"""Which parts of a night nobody may call free of events: where a row's times or its text do not say enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.scoring import Event, Row
from sleepfm.signals.scorings.vocabulary import is_beside_the_point, mentioned_events, says_not_assessed
from sleepfm.wording import counted, for_number

# Onsets and durations in s beyond which nothing is a time.
LONGEST = 1e9
# Characters that are kept of a text.
TEXT = 80
# How far an event without a length may reach; few breathe less for longer.
_REACH = 60.0
# What lasts so long in s may be an event: the AASM's arousals last 3 s at least, few desaturations longer than five minutes.
_AS_EVENTS_LAST = (3.0, 300.0)
_BESIDE_BREATHING = ("arousal", "desaturation")
# Rows that a warning shows.
_SHOWN = 3


@dataclass
class Doubts:
    """What is in doubt, as events over what it may touch.

    Attributes:
        unclear: of apneas and hypopneas, with the text as type.
        untimed: of the events that their type names.
        warnings: what was met.
    """

    unclear: list[Event] = field(default_factory=list)
    untimed: list[Event] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_without_times(self, rows: Iterable[Row], words: EventWords) -> None:
        """Events and texts that are not understood, whose times cannot be."""
        lost = []
        for row in rows:
            if abs(row.onset) <= LONGEST:
                lost.append(f"{row.text[:TEXT]!r} at {row.onset:g} s for {row.duration or 0.0:g} s")
                # An end before the start may be a wrong sign or both in turn.
                wrong = row.duration is not None and -LONGEST <= row.duration < 0
                back = min(-(row.duration or 0.0), _REACH) if wrong else 0.0
                begin, lasts = row.onset - back, back + (back or _REACH)
            else:
                lost.append(f"{row.text[:TEXT]!r} at a time that cannot be read, so that it may be anywhere in the night")
                begin, lasts = 0.0, LONGEST
            if words.tells_an_event(row.text, row.group):
                self._add(row.text, words.event_of(row.text), begin, lasts)
            else:
                self._add_any(row.text, begin, lasts)
        be, it = for_number(len(lost), "is"), for_number(len(lost), "it")
        self._warn(lost, f"whose times cannot be {be} left out, what {it} may touch has no label")

    def add_without_lengths(self, events: Iterable[tuple[Row, str]]) -> None:
        """Events that begin where they say and end nobody knows where."""
        short = [(row, kind) for row, kind in events if not row.duration]
        for row, kind in short:
            self._add(row.text, kind, row.onset, _REACH)
        count, it = for_number(len(short), "counts"), for_number(len(short), "it")
        begin = for_number(len(short), "begins")
        self._warn(
            [f"{row.text[:TEXT]!r} at {row.onset:g} s" for row, _ in short],
            f"without a duration {count} where {it} {begin}, what {it} may touch in the minute after has no label",
        )

    def add_unclear(self, rows: Iterable[Row]) -> None:
        """Texts that may be apneas or hypopneas."""
        for row in rows:
            self._add(row.text, None, row.onset, row.duration or _REACH)
            for kind in mentioned_events(row.text):
                self._add(row.text, kind, row.onset, row.duration or _REACH)

    def add_not_understood(self, rows: Sequence[Row], with_lengths: bool) -> list[Row]:
        """Texts that name no event, and the rows among them that are in doubt of breathing.

        Such a text may be an event where it lasts as events do; ``with_lengths`` says whether the events of this scoring have
        durations, since where none has one, this one need not either. What says that nobody looked for events may last a night.
        """
        found = []
        for row in rows:
            shortest, longest = _AS_EVENTS_LAST
            stated = bool(row.duration) and says_not_assessed(row.text)
            if not stated and not (shortest <= row.duration <= longest if row.duration else not with_lengths):
                continue
            if not is_beside_the_point(row.text):
                self._add_any(row.text, row.onset, row.duration or _REACH)
                found.append(row)
            elif row.duration:
                for kind in mentioned_events(row.text):
                    self._add(row.text, kind, row.onset, row.duration)
        return found

    def _add(self, text: str, kind: str | None, onset: float, duration: float) -> None:
        if kind in _BESIDE_BREATHING:
            self.untimed.append(Event(onset, duration, kind))
        else:
            self.unclear.append(Event(onset, duration, text[:TEXT]))

    def _add_any(self, text: str, onset: float, duration: float) -> None:
        for kind in (None, *_BESIDE_BREATHING):
            self._add(text, kind, onset, duration)

    def _warn(self, rows: Sequence[str], what: str) -> None:
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        if rows:
            self.warnings.append(f"{counted(len(rows), 'event')} {what}: {', '.join(rows[:_SHOWN])}{more}")
