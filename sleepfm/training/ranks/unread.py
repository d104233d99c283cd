"""What a training process prints when nobody reads it any more: a terminal that was closed, an ssh connection that was lost, a
``| tee`` that was ended.

Python would raise in the middle of a step, and what was trained since the last save would be lost.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any


def leave_when_nobody_reads() -> None:
    """From here on, a write to standard output or error that finds its reader gone asks this process to leave, as by SIGUSR1: it
    saves and ends with the status of a preemption. What it prints from then on is lost.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Not what a test, a notebook or another program has put in its place.
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            raw = io.BufferedWriter(_Unread(stream.fileno()))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True, write_through=True))


class _Unread(io.RawIOBase):
    """The file of that number, not closed with this object."""

    def __init__(self, number: int) -> None:
        self._number, self._asked = number, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        try:
            return os.write(self._number, data)
        except OSError as error:
            # A pipe or socket, or a terminal. That a disk is full is told.
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
        if not self._asked:
            self._asked = True
            os.kill(os.getpid(), signal.SIGUSR1)
        return len(data)
