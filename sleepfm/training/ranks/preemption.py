"""Signals that ask a job to leave: finish the step, save, and end with a status that asks to be started again."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import psutil

from sleepfm.training.ranks.ending import end_silently

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later.
PREEMPTED_STATUS = 75
# Names of signals that a rank hears although its launcher, from which it inherits that, ignores them.
HEARD = "SLEEPFM_HEARD_SIGNALS"

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_LOOK_SECONDS = 1.0
# Whose end is the end of the job, by a word of their command lines.
_LAUNCHERS = ("deepspeed", "deepspeed.launcher.runner", "sleepfm.training.nodes")


class Preemption:
    """While entered, the signals only set :attr:`requested`; the handlers before come back on exit.

    Not after an error: the process is about to say it and to end, and the launcher, which sends SIGTERM as soon as it sees
    another rank gone, would end it before it has.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        for number in listened():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def leave_at_once() -> None:
    """From here on, wherever no :class:`Preemption` is entered, a signal ends this process with the status of a preemption: there
    is nothing to save before the first step and after the last.
    """
    for number in listened():
        signal.signal(number, _leave)


def leave_with(status: int) -> None:
    """From here on a signal ends this process at once with ``status``: another rank has said what this one is about to say.

    Not after an error inside of a :class:`Preemption`, of which this may be the only rank that knows.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, lambda *_: end_silently(status))


def leave_with_launcher() -> None:
    """Ask this process to leave, as by SIGUSR1, when the process that started it is gone, or the command above that.

    The ``deepspeed`` command dies of a signal without a word to the launcher below it, and a launcher that is killed says nothing
    to its ranks. A process whose parent is gone gets another parent; a thread looks every second. (``PR_SET_PDEATHSIG`` would
    speak of the direct parent alone.) Does nothing in a process that DeepSpeed's launcher did not start.
    """
    # Only that launcher sets it.
    if "LOCAL_SIZE" not in os.environ:
        return
    launcher = os.getppid()
    command = _parent(launcher)
    # The command ended before this process began.
    late = command == 1 and not psutil.pid_exists(os.getpgid(launcher))
    # Not a shell, or whatever else may end before the job does.
    watched = command is not None and _is_launcher(command)

    def look() -> None:
        while not late and os.getppid() == launcher and (not watched or _parent(launcher) == command):
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=look, name="launcher", daemon=True).start()


def listened() -> list[signal.Signals]:
    """Those of the signals that whoever started this process (``nohup``, a shell's ``&``) did not tell it to ignore.

    DeepSpeed's launcher may ignore some of which it would die, for the ranks to get them (:data:`HEARD`).
    """
    heard = ("SIGUSR1", *os.environ.get(HEARD, "").split())
    return [number for number in _SIGNALS if number.name in heard or signal.getsignal(number) is not signal.SIG_IGN]


def _leave(number: int, frame: FrameType | None) -> None:
    # Not through a stream, which this process may be writing to.
    os.write(2, f"stopped by {signal.Signals(number).name}; the same command continues\n".encode())
    end_silently(PREEMPTED_STATUS)


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None


def _is_launcher(pid: int) -> bool:
    try:
        words = psutil.Process(pid).cmdline()[:4]
    except psutil.Error:
        return False
    return any(word in _LAUNCHERS or os.path.basename(word) == "deepspeed" for word in words)
