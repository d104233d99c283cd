"""What scorings say that is no stage and no event, summed over recordings, for the reports of doctor, build and info."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sleepfm.signals.scorings.vocabulary import is_beside_the_point, says_not_assessed
from sleepfm.wording import counted

# Distinct texts that are kept of a cohort, and shown of each sort.
_KEPT = 10_000
_SHOWN = 20
# Recordings that are named of those with one reason.
_NAMED = 3
_FILE_NAME = re.compile(r".*\.[A-Za-z]{2,6}")


@dataclass
class TextCounts:
    """Texts with how often they occur.

    Attributes:
        unclear: respiratory ones that are not understood; what they touch has no label of apnea and hypopnea.
        ignored: those without an effect, whether they are known to say nothing of stages and breathing or not known.
        refused: scorings that are not used for texts where stages stand, by recording, with the reason.
        refusals: how many these are; of a large cohort ``refused`` holds the first.
    """

    unclear: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    refusals: int = 0

    def add(self, recording: str, provenance: Mapping[str, Any]) -> None:
        """Count what the provenance of ``recording`` says of its scoring; one of an older data set may say less."""
        scoring = provenance.get("scoring") or {}
        reason = provenance.get("scoring_refused")
        unclear, ignored = Counter(scoring.get("unclear", {})), Counter(scoring.get("ignored", {}))
        self.merge(TextCounts(unclear, ignored, {recording: str(reason)} if reason else {}, int(bool(reason))))

    def merge(self, other: TextCounts) -> None:
        """Add the counts of ``other``."""
        for counter, more in ((self.unclear, other.unclear), (self.ignored, other.ignored)):
            counter.update(more)
            if len(counter) > 2 * _KEPT:
                for text, _ in counter.most_common()[_KEPT:]:
                    del counter[text]
        self.refusals += other.refusals
        if len(self.refused) < _KEPT:
            self.refused |= other.refused

    def lines(self) -> list[str]:
        """A line for each sort of text that there is, and one for each reason why scorings were refused."""
        reasons: dict[str, list[tuple[str, str]]] = {}
        for recording, reason in self.refused.items():
            reasons.setdefault(_without_file(recording, reason), []).append((recording, reason))
        lines = [f"scoring not used: {_of_all(reason, found)}" for reason, found in list(reasons.items())[:_SHOWN]]
        shown = sum(len(found) for found in list(reasons.values())[:_SHOWN])
        if self.refusals > shown:
            lines.append(f"scoring not used: {counted(self.refusals - shown, 'recording')} more")
        known = self.ignored - self._unknown()
        return lines + self.not_understood() + ([f"ignored: {_listed(known)}"] if known else [])

    def not_understood(self) -> list[str]:
        """A line for each sort of text that is not understood."""
        stated = Counter({text: count for text, count in self.unclear.items() if says_not_assessed(text)})
        sorts = (
            (stated, "states that nobody looked for apneas and hypopneas, so that epochs have no label of them"),
            (self.unclear - stated, "not understood, epochs without a label of apnea and hypopnea"),
            (self._unknown(), "not understood, without effect"),
        )
        return [f"{meaning}: {_listed(counter)}" for counter, meaning in sorts if counter]

    def _unknown(self) -> Counter[str]:
        return Counter({text: count for text, count in self.ignored.items() if text != "..." and not is_beside_the_point(text)})


def _without_file(recording: str, reason: str) -> str:
    """``reason`` without the name of the file that it begins with, the recording's or its scoring's."""
    name, separator, rest = reason.removeprefix(f"{recording}: ").partition(": ")
    return rest if separator and _FILE_NAME.fullmatch(name) else name + separator + rest


def _of_all(reason: str, found: list[tuple[str, str]]) -> str:
    """``reason`` with the recordings that it is said of, and with the scoring's name where it is one."""
    if len(found) == 1:
        ((recording, whole),) = found
        return f"{recording}: {whole.removeprefix(f'{recording}: ')}"
    names = [recording for recording, _ in found]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} recordings ({', '.join(names[:_NAMED])}{more}): {reason}"


def _listed(counter: Counter[str]) -> str:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{text!r} {count}" if text != "..." else f"others {count}" for text, count in ordered[:_SHOWN])
    rest = len(ordered) - _SHOWN
    return shown + (f" and {rest} texts more" if rest > 0 else "")
