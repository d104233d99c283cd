"""SIGTERM and Ctrl-C to a command that works on Ray: it tidies up, says one line, and answers with the status of the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sleepfm.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What is said of the command that is to be interrupted; None outside one.
_told: str | None = None


@contextmanager
def interruptible(told: str = "") -> Iterator[None]:
    """Raise :class:`Interrupted` where this process is asked to end; ``told`` is what its user is to know then.

    A second signal ends the process at once.
    """
    global _told
    if threading.current_thread() is not threading.main_thread():
        # Signals go to the main thread alone.
        yield
        return
    before, _told = {number: signal.getsignal(number) for number in _SIGNALS}, told
    listen_again()
    try:
        yield
    finally:
        _told = None
        for number, handler in before.items():
            signal.signal(number, handler)


def listen_again() -> None:
    """To be called once Ray is connected to, which takes SIGTERM over; nothing outside of :func:`interruptible`."""
    if _told is not None and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_DFL)
    raise Interrupted(number, _told or "")
