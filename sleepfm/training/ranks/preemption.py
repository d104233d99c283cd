"""SIGTERM and SIGUSR1: finish the step, save, and leave with a status that asks to be started again."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later.
PREEMPTED_STATUS = 75

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """While entered, the two signals only set :attr:`requested`; the handlers before come back on exit.

    Not after an error: the process is about to say it and to end, and the launcher, which sends SIGTERM as soon as it sees
    another rank gone, would end it before it has.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
