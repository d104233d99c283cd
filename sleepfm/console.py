"""What a command prints, whatever the terminal or pipe can show, and how it ends."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from sleepfm.errors import Interrupted, SleepFMError

# Codes of the terminal (ECMA-48).
RED, YELLOW = "31", "33"
SECONDS_BETWEEN_LINES = 10.0

ItemT = TypeVar("ItemT")


def accept_every_character() -> None:
    """Have standard output and error write a character that their encoding lacks as an escape (``\\u03ba``).

    A pipe in the C locale, ``PYTHONIOENCODING=ascii``, or a file name that is no UTF-8 would else end the command in the middle
    of its work. Every entry point calls this first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """``text`` in ``colour`` if ``stream``, standard output by default, is a terminal and its user has not set ``NO_COLOR``."""
    shows = (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{colour}m{text}\033[0m" if shows else text


def say(text: str) -> None:
    """Print ``text`` on standard error at once."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """:func:`say` that something is not as it should be, and that the command goes on."""
    say(f"{coloured('warning:', YELLOW, sys.stderr)} {text}")


def refuse(reason: str) -> None:
    """:func:`say` that a recording is refused, and that the command goes on."""
    say(f"{coloured('refused:', YELLOW, sys.stderr)} {reason}")


def with_progress(items: Iterable[ItemT], total: int, what: str, unit: str) -> Iterator[ItemT]:
    """``items``, with their number told on standard error: a bar on a terminal, else a line every few seconds.

    Args:
        total: how many ``items`` there are; these are of the kind ``unit``, in the singular.
        what: what is done to them.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit=unit)
        return
    printed = time.monotonic()
    for number, item in enumerate(items, 1):
        now = time.monotonic()
        if now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            say(f"{what}: {number} of {total} {unit}s")
        yield item


def exit_with(command: Callable[[], int]) -> int:
    """Run ``command``; returns its exit status, or that of a :class:`SleepFMError`, which is printed in one line on stderr."""
    try:
        return command()
    except SleepFMError as error:
        say(f"{coloured('error:', RED, sys.stderr)} {error}")
        return error.exit_status
    except Interrupted as error:
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        return 0


class SaidOnce:
    """Says the first text that it is given; what is waited for is looked at again and again."""

    def __init__(self) -> None:
        self._said = False

    def say(self, text: str) -> None:
        if not self._said:
            say(text)
        self._said = True
