"""Numbers in sentences."""

from __future__ import annotations

# The others take an s.
_PLURAL = {
    "person": "people",
    "family": "families",
    "it": "they",
    "has": "have",
    "is": "are",
    "was": "were",
    "counts": "count",
    "begins": "begin",
    "holds": "hold",
}


def counted(number: int, noun: str) -> str:
    """``1 recording``, ``2 recordings``; ``noun`` is in the singular."""
    return f"{number} {for_number(number, noun)}"


def for_number(number: int, word: str) -> str:
    """``word``, a noun in the singular or one of the verbs above, as it goes with ``number``."""
    return word if number == 1 else _PLURAL.get(word, f"{word}s")
