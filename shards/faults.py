"""What is said of faults that are not a recording's own: of this program, and of processes that died at one."""

from __future__ import annotations

import os
import re
import signal
import traceback
from pathlib import Path, PurePath

from sleepfm.errors import GoneError
from sleepfm.signals.files import is_remote

# What is said where memory ran out, or seems to have: in a process, of a node, and by the system's own choice.
NO_MEMORY = "memory ran out"
NODE_FULL = "its worker was ended, since its node's memory ran out"
KILLED = "ended by SIGKILL, as the system does where memory runs out"
# As faulthandler writes the innermost call first.
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


def kind_of(error: BaseException, path: Path) -> str:
    """Class of the error for which the recording at ``path`` is refused: one that was removed is gone, a broken link is not."""
    missing = isinstance(error.__cause__, FileNotFoundError) and (is_remote(path) or not os.path.lexists(path))
    return (GoneError if missing else type(error)).__name__


def fault_of(error: BaseException) -> str:
    """Class and message of ``error``, and where it was raised, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({PurePath(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    message = " ".join(str(error).split())
    return f"a fault of this program, please report it: {type(error).__name__}{': ' if message else ''}{message}{place}"


def death_of(status: int, dump: str, seconds: float | None = None) -> str:
    """What ended a process.

    Args:
        status: as of :class:`subprocess.Popen`: negative for a signal.
        dump: what ``faulthandler`` wrote of its stack.
        seconds: the time limit, where it was ended for that.
    """
    frame = _FRAME.search(dump)
    place = f" in {PurePath(frame['file']).name}, line {frame['line']}, {frame['name']}" if frame else ""
    if seconds is not None:
        return f"not done within ray.task_timeout_s={seconds:g}{place}"
    if status == -signal.SIGKILL:
        return KILLED
    if status < 0:
        return f"ended by {signal.Signals(-status).name}{place}"
    return f"ended with status {status}{place}"


def is_of_memory(death: str) -> bool:
    """Whether ``death``, as the schedule or :func:`death_of` says it, is for want of memory, as far as can be known."""
    return death.startswith((NO_MEMORY, NODE_FULL, KILLED))
