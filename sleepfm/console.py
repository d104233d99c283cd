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
