"""What a training process prints when it goes nowhere any more: a terminal that was closed, an ssh connection that was lost, a
``| tee`` that was ended, a log whose disk is full.

Python would raise in the middle of a step, and what was trained since the last save would be lost.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any

# A pipe or socket, or a terminal.
_NOBODY_READS = (errno.EPIPE, errno.EIO)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def outlive_lost_output() -> None:
    """From here on no write to standard output or error raises because it goes nowhere.

    One that finds its reader gone asks this process to leave, as by SIGUSR1: it saves and ends with the status of a preemption.
    What it prints from then on is lost. What finds no room on a disk is lost too, but the process goes on: the next start would
    find no more room, and the run's folder has its own trace. When there is room again, a line says how much is missing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Not what a test, a notebook or another program has put in its place.
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            raw = io.BufferedWriter(_Output(stream.fileno()))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True, write_through=True))


class _Output(io.RawIOBase):
    """The file of that number, not closed with this object."""

    def __init__(self, number: int) -> None:
        self._number, self._asked, self._missing = number, False, 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        try:
            if self._missing:
                os.write(self._number, f"\n({self._missing} bytes of output are missing here: the disk was full)\n".encode())
                self._missing = 0
            return os.write(self._number, data)
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._missing += len(data)
            elif error.errno not in _NOBODY_READS:
                raise
            elif not self._asked:
                self._asked = True
                os.kill(os.getpid(), signal.SIGUSR1)
        return len(data)
