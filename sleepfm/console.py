"""What a command prints, whatever the terminal or pipe can show."""

from __future__ import annotations

import io
import sys


def accept_every_character() -> None:
    """Have standard output and error write a character that their encoding lacks as an escape (``\\u03ba``).

    A pipe in the C locale, ``PYTHONIOENCODING=ascii``, or a file name that is no UTF-8 would else end the command in the middle
    of its work. Every entry point calls this first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print ``text`` on standard error at once."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """:func:`say` that something is not as it should be, and that the command goes on."""
    say(f"warning: {text}")


class SaidOnce:
    """Says the first text that it is given; what is waited for is looked at again and again."""

    def __init__(self) -> None:
        self._said = False

    def say(self, text: str) -> None:
        if not self._said:
            say(text)
        self._said = True
