"""Free text stays out of what is written: technicians' notes, headers and file contents may name people.

Reading keeps every text, and messages quote them, for the terminal of whom the recordings belong to. What is stored holds
a digest in the place of each text that is not of a closed list of standard words.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sleepfm.constants import CHANNELS
from sleepfm.signals.cohorts.catalogue import cohort_names, load_cohort
from sleepfm.signals.cohorts.cohort import Cohort, normalise_label
from sleepfm.signals.cohorts.label_grammar import read_label
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.vocabulary import is_beside_the_point, is_respiratory, is_standard_text

# Of who sets none of their own. A digest by a salt that is known can be compared with that of a guess.
SALT = "sleepfm"
_REST = "..."
# A text as `repr` writes it. Ours hold no quotation mark but an apostrophe behind a letter.
_QUOTED = re.compile(r"""(?<!\w)(b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))""", re.DOTALL)
_DIGEST = r"(?:unknown|note|respiratory|text)-[0-9a-f]{8}"
_SAFE = re.compile(rf"[\W\d_]?|\d{{1,3}}|{_DIGEST}")


def digest_of(text: str, kind: str, salt: str = SALT) -> str:
    """What stands for ``text``: its kind and eight hexadecimal digits of a salted SHA-256."""
    salted = f"{salt}\0{text}".encode("utf-8", "surrogatepass")
    return f"{kind}-{hashlib.sha256(salted).hexdigest()[:8]}"


def has_digest(message: str) -> bool:
    """Whether what :func:`digest_of` makes stands in ``message``."""
    return re.search(rf"\b{_DIGEST}\b", message) is not None


def is_standard(text: str) -> bool:
    """Whether ``text`` is of a closed list: a standard text of scorings, a label that is known, a name of ours."""
    return (
        _SAFE.fullmatch(text) is not None
        or is_standard_text(text)
        or read_label(text) is not None
        or normalise_label(text) in _known_labels()
    )


@lru_cache(maxsize=1)
def _known_labels() -> frozenset[str]:
    """Labels that the shipped rules list, canonical channels, and the names of cohorts."""
    cohorts = [load_cohort(name) for name in cohort_names()]
    labels = {label for cohort in cohorts for label in listed_labels(cohort)}
    return frozenset(map(normalise_label, (*labels, *CHANNELS, *cohort_names())))


def listed_labels(cohort: Cohort) -> Iterable[str]:
    """All labels that the rules of ``cohort`` list."""
    for rules in cohort.channels.values():
        for rule in rules:
            yield from rule.signal
            for texts in rule.reference:
                yield from texts


def without_texts(message: str, salt: str = SALT) -> str:
    """``message`` with a digest for every text that it quotes and that is not standard."""

    def instead(match: re.Match[str]) -> str:
        try:
            text = ast.literal_eval(match[1])
        except (SyntaxError, ValueError):
            text = match[1]
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        return match[1] if is_standard(text) else digest_of(text, "text", salt)

    return _QUOTED.sub(instead, message)


def counts_without_texts(counts: Mapping[str, int], kind: str, salt: str = SALT) -> dict[str, int]:
    """``counts`` of texts by their digests, standard texts and the count of the rest as they are.

    Args:
        kind: what the texts are, or empty for ``respiratory``, ``note`` or ``unknown`` as each is.
    """
    found: Counter[str] = Counter()
    for text, count in counts.items():
        kept = text == _REST or is_standard(text)
        found[text if kept else digest_of(text, kind or _kind(text), salt)] += count
    return dict(found)


def _kind(text: str) -> str:
    if is_respiratory(text):
        return "respiratory"
    return "note" if is_beside_the_point(text) else "unknown"


def events_without_texts(events: Iterable[Event], salt: str = SALT) -> tuple[Event, ...]:
    """Events that are not understood, of which the type is the text, with its digest instead."""
    return tuple(
        event if is_standard(event.type) else replace(event, type=digest_of(event.type, _kind(event.type), salt))
        for event in events
    )


def provenance_without_texts(provenance: Mapping[str, Any], salt: str = SALT) -> dict[str, Any]:
    """``provenance`` (:class:`sleepfm.signals.prepare.RecordingDescription`) without free text."""
    kept = dict(provenance)
    kept["warnings"] = [without_texts(text, salt) for text in provenance.get("warnings", ())]
    kept["missing"] = {channel: without_texts(why, salt) for channel, why in provenance.get("missing", {}).items()}
    kept["scoring_refused"] = without_texts(provenance.get("scoring_refused", ""), salt)
    if scoring := provenance.get("scoring"):
        kept["scoring"] = {
            **scoring,
            "unclear": counts_without_texts(scoring.get("unclear", {}), "", salt),
            "ignored": counts_without_texts(scoring.get("ignored", {}), "", salt),
            "warnings": [without_texts(text, salt) for text in scoring.get("warnings", ())],
        }
    return kept
