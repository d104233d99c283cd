"""File names as what they are: bytes that somebody else chose. What is shown to people keeps to one line of printable text."""

from __future__ import annotations


def shown(text: str) -> str:
    """``text`` as one line of printable text; line ends, control characters and bytes that are no UTF-8 are escaped.

    The last come from the system as lone surrogates, which neither a terminal nor Parquet takes.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
