"""What a build has made, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from shards.build_config import BuildConfig
from shards.manifest import rows
from shards.names import shown
from shards.plan import Plan
from shards.scored_with import kept_of
from sleepfm.signals.cohorts.identity import UnreadNames
from sleepfm.signals.scorings.finder import SharedScorings
from sleepfm.signals.scorings.text_counts import TextCounts


@dataclass(frozen=True)
class BuildResult:
    """The written ``dataset.json``, all rows of the quarantine, the paths whose refusal was printed on the way, and what the
    scorings of converted recordings say that is no stage and no event.
    """

    description: dict[str, Any]
    quarantine: list[dict[str, Any]]
    printed: set[str]
    texts: TextCounts
    unscored: int = 0
    """Converted recordings for which no scoring was found."""
    unread: UnreadNames = field(default_factory=UnreadNames)
    """Converted recordings whose file name does not say whose it is."""
    unlisted: dict[str, str] = field(default_factory=dict)
    """Folders of the source that cannot be listed, each with the reason."""
    shared: tuple[str, ...] = ()
    """A line for each scoring that was taken for several recordings."""
    gone: Set[str] = frozenset()
    """Paths that an earlier build refused and that are no longer in the source."""
    people: tuple[str, ...] = ()
    """What the tables of people say, and what in them is not understood, a line each."""
    warnings: tuple[str, ...] = ()
    """What else is to be known of them."""


class Told:
    """What a build says of its recordings when it is through, gathered as their sidecars pass."""

    def __init__(self, plan: Plan, config: BuildConfig) -> None:
        self._plan, self._scored = plan, config.scoring != "ignore"
        self.quarantine: list[dict[str, Any]] = []
        self.texts, self.unread, self.scorings = TextCounts(), UnreadNames(), SharedScorings()
        self.unscored = 0

    def see(self, sidecar: dict[str, Any]) -> None:
        used = kept_of(sidecar)
        self.quarantine += rows("quarantine", sidecar, self._plan)
        for record in sidecar["records"]:
            provenance, source = record["provenance"], shown(record["source"])
            # One name in two folders is one scoring where the bytes are the same.
            if provenance.get("scoring") and (file := used.get(record["source"])):
                self.scorings.add(file, source)
            self.texts.add(source, provenance)
            if not provenance.get("subject_read", True):
                self.unread.add(source, record["subject"])
            self.unscored += self._scored and provenance.get("scoring") is None and not provenance.get("scoring_refused")
