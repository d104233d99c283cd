"""What the doctor says of a whole folder, counted as its recordings pass: no finding is kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sleepfm.constants import CHANNELS
from sleepfm.signals.cohorts.identity import UnreadNames
from sleepfm.signals.cohorts.proposals import merged, scoring_patterns
from sleepfm.signals.files import is_folder, location, name_below
from sleepfm.signals.people import KnownPeople
from sleepfm.signals.polarity import POLAR, was_weighed
from sleepfm.signals.refusals import ReasonCounts
from sleepfm.signals.scorings.finder import SharedScorings
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.wording import counted, for_number

if TYPE_CHECKING:
    from sleepfm.signals.doctor import Finding

# Distinct signals, rules and texts that are shown of a folder, and kept of one.
_SHOWN = 100
_KEPT = 10_000
_Key = TypeVar("_Key")


class FolderSummary:
    """Counts over the findings of a folder.

    Args:
        root: the folder, or the one recording.
        signals: whether samples were read: without them nothing is known of polarity.
        people: what tables say of the people.

    Attributes:
        found, usable: recordings that were looked at, and those of them that can be converted.
        duplicates: usable ones that hold the signals of another one, of which a build sets one aside.
        troubled: those that would be refused, or used without a scoring that they have.
    """

    def __init__(self, root: Path, signals: bool, people: KnownPeople | None = None) -> None:
        self._root = root
        self._people = people or KnownPeople()
        self._in_table: Counter[str] = Counter()
        self._met: set[tuple[str, str, str]] = set()
        self._digests: dict[str, str] = {}
        self._same: dict[str, str] = {}
        self._folders = 0
        self.found = self.usable = self.duplicates = self.troubled = 0
        self._signals = signals
        self._mapped: Counter[str] = Counter()
        self._polarity: Counter[tuple[str, str]] = Counter()
        self._cohorts: Counter[str] = Counter()
        self._subjects: set[str] = set()
        self._unscored = self._not_used = self._opened = 0
        self._unread = UnreadNames()
        self._texts = TextCounts()
        self._strange: Counter[str] = Counter()
        self._stands: dict[str, str] = {}
        self._unmapped: Counter[tuple[str, float, str]] = Counter()
        self._rules: Counter[str] = Counter()
        self._scorings = SharedScorings()
        self._looked_for: dict[str, str] = {}
        self._without_scoring: list[str] = []
        self._refusals = ReasonCounts()

    @property
    def printed(self) -> int:
        """Recordings and folders so far."""
        return self.found + self._folders

    def add_folder(self) -> None:
        """Count a folder that cannot be listed."""
        self._folders += 1
        self.troubled += 1

    def add(self, finding: Finding) -> None:
        """Count one recording."""
        self.found += 1
        self.troubled += bool(finding.refused or finding.scoring_refused)
        # A recording may have several signals of one label.
        for signal in {(item["label"], item["rate"], item["unit"]) for item in finding.unmapped}:
            _count(self._unmapped, signal)
        for rule in {item["rule"] for item in finding.unmapped} - {""}:
            _count(self._rules, rule)
        if finding.looked_for:
            where = f"{', '.join(finding.looked_for)} in the folder of {finding.path} and in those above it"
            self._looked_for.setdefault(finding.cohort, where)
            if len(self._without_scoring) < _KEPT:
                self._without_scoring.append(finding.path)
        if finding.cohort:
            self._opened += 1
            if not finding.subject_read:
                self._unread.add(name_below(finding.path, self._root), finding.subject)
        if finding.refused:
            self._refusals.add(finding.refused.removeprefix(f"{finding.path}: "))
            return
        self.duplicates += self._is_duplicate(finding)
        self._add_usable(finding)

    def _is_duplicate(self, finding: Finding) -> bool:
        """Whether an earlier one has its signals; of a folder of very many, the later ones are not compared."""
        first = next((self._digests[digest] for digest in finding.sample_digests if digest in self._digests), None)
        if first is not None and len(self._same) < _KEPT:
            self._same[finding.path] = first
        elif len(self._digests) < 100 * _KEPT:
            self._digests.update(dict.fromkeys(finding.sample_digests, finding.path))
        return first is not None

    def _add_usable(self, finding: Finding) -> None:
        self.usable += 1
        self._mapped.update(finding.channels.keys())
        if self._signals:
            for name, channel in finding.channels.items():
                if decision := channel["polarity"].get("decision"):
                    weighed = decision != "undecided" or was_weighed(channel["polarity"])
                    self._polarity[name, decision if weighed else "not weighed"] += 1
        self._cohorts[finding.cohort] += 1
        self._subjects.add(finding.subject)
        self._add_person(finding)
        self._unscored += not finding.scoring
        self._not_used += bool(finding.scoring_refused)
        self._texts.merge(finding.texts)
        if finding.scoring_file:
            self._scorings.add(finding.scoring_file, finding.path)
        for text, onset in finding.places.items():
            _count(self._strange, text, finding.unclear.get(text, 0) + finding.ignored.get(text, 0))
            if text in self._strange:
                self._stands.setdefault(text, f"{finding.path} at {timedelta(seconds=round(onset))}")

    def _add_person(self, finding: Finding) -> None:
        person = (finding.cohort, finding.subject, finding.visit)
        if self._people.has_table(finding.cohort) and person not in self._met:
            self._met.add(person)
            for name in self._people.of(*person).sources or ("",):
                self._in_table[name] += 1

    def lines(self) -> Iterable[str]:
        """The summary, a line each."""
        if self.usable:
            yield from self._channels()
            yield "cohorts    " + ", ".join(f"{name} {count}" for name, count in sorted(self._cohorts.items()))
            yield f"subjects   {len(self._subjects)}; {self._about_scorings()}"
            yield from (f"texts      {line}" for line in self._texts.lines())
            yield from self._places()
        yield from self._about_people()
        yield from self._not_mapped()
        yield from (f"scorings   {name}: looked for {where}" for name, where in sorted(self._looked_for.items()))
        yield from self._scoring_patterns()
        yield from (f"warning    {line}" for line in self._scorings.lines(str))
        if self._unread.count:
            yield f"warning    {self._unread.warning(self._opened)}"
        if self._folders:
            yield f"folders    {self._folders} cannot be listed; what is in them is not counted"
        duplicates = "is a duplicate" if self.duplicates == 1 else "are duplicates"
        twice = f"; {self.duplicates} of the usable {duplicates}, which a build leaves out" if self.duplicates else ""
        yield from (f"refused {line}" for line in self._refusals.lines())
        yield f"{counted(self.found, 'recording')}: {self.usable} usable, {self.found - self.usable} would be refused{twice}"

    def _about_scorings(self) -> str:
        """How many of the usable recordings have no scoring, or none that is used."""
        if self.usable == 1:
            also = " (it has one that is not used)" if self._not_used else ""
            return f"the usable recording has {'no' if self._unscored else 'a'} scoring{also}"
        also = f" ({self._not_used} {for_number(self._not_used, 'has')} one that is not used)" if self._not_used else ""
        return f"{self._unscored} of the usable recordings {for_number(self._unscored, 'has')} no scoring{also}"

    def _channels(self) -> Iterable[str]:
        """Of each channel the recordings that have it; where signals were read, what became of its polarity."""
        words = ("inverted", "undecided", "not weighed") if self._signals else ()
        titles = "".join(f"{title:>14}" for title in ("upside down", "undecided", "not weighed")[: len(words)])
        yield f"channel    in usable recordings{titles}"
        for name in CHANNELS:
            share = f"{self._mapped[name]} of {self.usable}"
            counts = "".join(f"{self._polarity[name, word] if name in POLAR else '-':>14}" for word in words)
            yield f"{name:<10} {share:>20}{counts}"

    def _about_people(self) -> Iterable[str]:
        """Which tables of people there are, and how many of those who are here are in them; nights that are there twice."""
        yield from (f"people     {line}" for line in self._people.lines(self._cohorts))
        if self._people.reports:
            known = ", ".join(f"{name} of {count}" for name, count in sorted(self._in_table.items()) if name)
            people = len({subject for _, subject, _ in self._met})
            total = len(self._subjects)
            here = f"{people} of the {total} here {for_number(people, 'is')}"
            yield f"people     {here} of a cohort with a table; known: {known or 'nothing'}"
            if self._in_table[""]:
                absent = self._in_table[""]
                yield f"people     {absent} of them, at this visit, {for_number(absent, 'is')} in no table"
        for path, first in list(self._same.items())[:_SHOWN]:
            told = "a build leaves out the one without a scoring, or else the later one: remove it"
            yield f"warning    {path} has the same signals as {first}; {told}"

    def _places(self) -> Iterable[str]:
        """Where texts that are not understood stand first, the most frequent ones before others."""
        for text, count in self._strange.most_common(_SHOWN):
            yield f"texts      {text!r} {count}, first in {self._stands[text]}"
        if len(self._strange) > _SHOWN:
            yield f"texts      and {len(self._strange) - _SHOWN} more; --json has all"

    def _not_mapped(self) -> Iterable[str]:
        """Signals that are part of no channel, and the rules that would map some of them."""
        if not self._unmapped:
            return
        # Of one recording they stand above, in what is said of it.
        if self.found > 1:
            yield from self._unmapped_signals()
        if self._rules:
            what = "to map them" if self.found > 1 else "to map signals that are unmapped above"
            yield f"rules      {what}, if they are what they seem to be; put them below `channels:` in your cohort file:"
        for rule, counts in merged(self._rules)[:_SHOWN]:
            check = "; the header states no unit, check this one" if ", unit: " in rule else ""
            found = f"{', '.join(map(str, counts))} {for_number(max(counts), 'recording')}"
            first = ", in this order" if len(counts) > 1 else ""
            channel = rule.partition(":")[0]
            has = f"{counted(self._mapped[channel], 'other')} {for_number(self._mapped[channel], 'has')} {channel}"
            instead = f"; {has} by rules that this one replaces: write these rules too" if self._mapped[channel] else ""
            yield f"           {rule}  # {found}{first}{check}{instead}"

    def _unmapped_signals(self) -> Iterable[str]:
        """Signals that are part of no channel, the most frequent ones."""
        yield "not mapped                              rate   unit      recordings"
        for (label, rate, unit), count in sorted(self._unmapped.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]:
            yield f"           {label!r:<24} {rate:>7g} Hz   {unit or '-':<8} {count:>6} of {self.found}"
        if len(self._unmapped) > _SHOWN:
            yield f"           and {len(self._unmapped) - _SHOWN} more; --json has all"

    def _scoring_patterns(self) -> Iterable[str]:
        """Patterns by which there would be scorings of recordings that have none."""
        if not self._without_scoring or not is_folder(self._root):
            return
        patterns = scoring_patterns([location(path) for path in self._without_scoring], self._root)
        if patterns:
            yield "scorings   patterns that would find scoring files; put one below `scoring:` in your cohort file:"
        for name, count in patterns.most_common(_SHOWN):
            yield f"           files: [{json.dumps(name)}]  # {counted(count, 'recording')}"


def _count(counter: Counter[_Key], key: _Key, count: int = 1) -> None:
    """Count ``key``, unless it is new and so many others are kept already."""
    if key in counter or len(counter) < _KEPT:
        counter[key] += count
