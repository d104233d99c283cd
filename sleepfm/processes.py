"""Processes that work beside this one, and end with it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_LOOK_SECONDS = 1.0


def process_pool(count: int) -> ProcessPoolExecutor:
    """``count`` processes that begin afresh: forked ones would inherit the threads of libraries in whatever state these are.

    They end within seconds of this process, also where it is killed and tells them nothing. Without that they would wait for
    work for ever: each of them holds the end of the queue through which the others would learn that nobody is left.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()
