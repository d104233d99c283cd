"""Processes that work beside this one, and end with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import FrameType

_LOOK_SECONDS = 1.0
# For what a process was writing to be removed.
_UNDO_SECONDS = 1.0


def process_pool(count: int) -> ProcessPoolExecutor:
    """``count`` processes that begin afresh: forked ones would inherit the threads of libraries in whatever state these are.

    They end within seconds of this process, also where it is killed and tells them nothing. Without that they would wait for
    work for ever: each of them holds the end of the queue through which the others would learn that nobody is left.

    Ctrl-C, which a terminal sends to all of them, ends them without a word: this process says what there is to say.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    signal.signal(signal.SIGINT, _leave)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    # The pool takes an exception for the result of a task, and goes on to the next.
    end = threading.Timer(_UNDO_SECONDS, os._exit, [128 + number])
    end.daemon = True
    end.start()
    # An interpreter that is asked to exit prints nothing.
    sys.exit(128 + number)
