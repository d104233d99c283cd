"""A site module for processes that convert recordings: names of files say what opening them does to the process.

Copied as ``sitecustomize.py`` into a folder of ``PYTHONPATH``, it is loaded by every interpreter of a cluster. A file whose name
holds one of the words below is read by the driver as any other; workers and attempts meet with what a damaged library, a full
memory or a stuck disk does.
"""

import os
import signal
import sys
from pathlib import Path

_CONVERTS = any("default_worker.py" in word or word == "shards.attempt" for word in sys.orig_argv)


def _meet(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    name = os.path.basename(os.fsdecode(arguments[0]))
    if not name.endswith(".edf"):
        return
    if "segfault" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif "memory" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif "full" in name:
        raise MemoryError
    elif "bug" in name:
        raise ZeroDivisionError("division by zero\nat the second line")
    elif "hang" in name:
        import ctypes

        # Keeps the interpreter's lock, as a loop in compiled code does.
        ctypes.PyDLL(None).sleep(100_000)
    elif "once" in name:
        mark = Path(os.environ["FATAL_ONCE"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if _CONVERTS:
    sys.addaudithook(_meet)
