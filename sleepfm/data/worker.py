"""A process that reads batches for another one, which starts it: ``python -m sleepfm.data.worker``, see :mod:`.worker_pool`.

Arguments are file descriptors: two connections, and the memory for the batches. Signals that ask a job to leave are not for
this process: it reads for as long as the one that started it asks, and ends with that one, however it ends.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from sleepfm.data.shared_batch import SharedMemory
from sleepfm.data.worker_pool import Reply, Request, ShardSource


def main(requests: int, control: int, *memories: int) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    reading: list[Callable[[], str]] = []
    threading.Thread(target=_obey, args=(Connection(control), reading), name="control", daemon=True).start()
    connection, slots = Connection(requests), [SharedMemory(memory) for memory in memories]
    stream: ShardSource = pickle.loads(connection.recv_bytes())
    # Whoever started this process says what was met.
    stream.report.silent = True
    reading.append(stream.report.reading)
    while True:
        try:
            request: Request = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(pickle.dumps(_answer(stream, request, slots[request.slot])))


def _answer(stream: ShardSource, request: Request, slot: SharedMemory) -> Reply:
    try:
        places = slot.write(stream.batch(request.start, request.count, request.tolerated))
    except Exception as error:  # raised by whoever asked
        return Reply(None, _portable(error), stream.report.take())
    return Reply(places, None, stream.report.take())


def _portable(error: Exception) -> Exception:
    """``error`` with where it was raised, or what can be told of it, where it cannot leave this process."""
    error.add_note(f"in a process that reads data:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _obey(control: Connection, reading: list[Callable[[], str]]) -> None:
    """Say what is being read when asked; end this process, whatever it does, when whoever asks is gone."""
    try:
        while True:
            control.recv_bytes()
            control.send_bytes((reading[0]() if reading else "").encode())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
