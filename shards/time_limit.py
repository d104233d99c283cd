"""A time limit for each recording of a task, which holds in compiled code as well."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], None]]:
    """A function that starts the time anew; once it is over, this process writes its stacks to its log and ends.

    The watch is a thread of the interpreter that needs no lock of it, so that a loop in compiled code does not stop it.
    """
    # A worker's standard error is a file by its number, whatever stands in sys.stderr.
    log = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2

    def restart() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=log)

    restart()
    try:
        yield restart
    finally:
        faulthandler.cancel_dump_traceback_later()
