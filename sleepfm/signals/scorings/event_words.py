"""Which event a text of a scoring names: a laboratory's own words first, then those that are known everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sleepfm.signals.cohorts.cohort import UNCLEAR, ScoringRules
from sleepfm.signals.scorings.scoring import Group
from sleepfm.signals.scorings.vocabulary import event_of, fold, is_beside_the_point, is_respiratory, names_a_stage, stage_of


@dataclass(frozen=True)
class EventWords:
    """Words for events, by which the reader of every format tells its rows.

    Attributes:
        own: folded text -> type of event, or ``unclear``, as a cohort file says under ``events``. It comes before what is known.
    """

    own: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: ScoringRules) -> EventWords:
        """The words in a cohort's rules."""
        return cls({fold(text): kind for text, kind in rules.events.items()})

    def is_own(self, text: str) -> bool:
        """Whether the cohort says what ``text`` means."""
        return self._own(text) is not None

    def event_of(self, text: str) -> str | None:
        """The type of event that ``text`` names, or None."""
        own = self._own(text)
        if own is None:
            return event_of(text)
        return None if own == UNCLEAR else own

    def is_unclear(self, text: str, group: Group = "") -> bool:
        """Whether ``text``, which names no event, may be an apnea or a hypopnea all the same."""
        own = self._own(text)
        if own is not None:
            return own == UNCLEAR
        return is_respiratory(text) or (group == "respiratory" and not is_beside_the_point(text))

    def tells_an_event(self, text: str, group: Group = "") -> bool:
        """Whether a row is an event, or a respiratory text that may be one."""
        return self.event_of(text) is not None or self.is_unclear(text, group)

    def stands_as_stage(self, text: str, group: Group = "") -> bool:
        """Whether a row is one of those that a scoring cannot do without."""
        return group == "stage" or (not self.is_own(text) and (stage_of(text) is not None or names_a_stage(text)))

    def _own(self, text: str) -> str | None:
        """What the cohort says of ``text``, or of one of NSRR's two names ("Unsure|Unsure")."""
        for part in (text, *text.split("|")) if self.own else ():
            if (kind := self.own.get(fold(part))) is not None:
                return kind
        return None


# Without a cohort's own.
KNOWN = EventWords()
