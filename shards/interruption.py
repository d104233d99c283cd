"""SIGTERM and Ctrl-C to a command that works on Ray: it tidies up, says one line, and answers with the status of the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sleepfm.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What is said of the command that is to be interrupted, None outside one; and the signal that came.
_told: str | None = None
_came: int | None = None


@contextmanager
def interruptible(told: str = "") -> Iterator[None]:
    """Raise :class:`Interrupted` where this process is asked to end; ``told`` is what its user is to know then.

    A second signal ends the process at once.
    """
    global _told, _came
    if threading.current_thread() is not threading.main_thread():
        # Signals go to the main thread alone.
        yield
        return
    before, _told, _came = {number: signal.getsignal(number) for number in _SIGNALS}, told, None
    listen_again()
    try:
        yield
    except KeyboardInterrupt:
        # While it waits, Ray raises one of its own for whatever a handler raises.
        if _came is None:
            raise
        raise Interrupted(_came, told) from None
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
    global _came
    _came = number
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_DFL)
    raise KeyboardInterrupt
