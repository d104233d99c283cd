"""Processes that read the batches of a plan, so that reading and whoever launches the step's operations share no interpreter.

Batches come in the order of the plan and are those that a thread would read, since a batch is a function of its position. Each
is written into memory that both sides see. Processes are started anew, without a fork: one with the threads of collectives and
a GPU cannot be forked safely. What the two sides tell each other is pickled, and comes through a pipe that they alone have:
nothing that is read from a file or from a network is unpickled.

torch's DataLoader would read as well, but it takes its memory from ``/dev/shm`` (64 MB in a container, unless told otherwise),
imports the main module of the job in every process, can wait for ever on a message that a killed process began, and its
processes die of the signals that ask a job to save and leave, which DeepSpeed's launcher sends to everything below it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Generic, Protocol, TypeVar, runtime_checkable

from sleepfm.data.batch import Batch
from sleepfm.data.report import Counts, ReadReport
from sleepfm.data.shared_batch import SharedMemory
from sleepfm.data.tolerance import TooManyCorruptError
from sleepfm.errors import LostWorkerError

T = TypeVar("T")

# Batches that a process is asked for at once: it reads one while another is taken.
AT_ONCE = 2
# How long one may take to say what it reads, and to end.
_ANSWER_SECONDS = 0.5
_NO_ANSWER = "does not answer"
_END_SECONDS = 5.0
# Asking a job to leave is no matter of the processes that read for it.
_LEFT_TO_OTHERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


@runtime_checkable
class ShardSource(Protocol):
    """What processes can read for another one: a stream over shards, see :class:`sleepfm.data.stream.Stream`."""

    report: ReadReport
    workers: int

    def batch(self, start: int, count: int, tolerated: float | None = None) -> Batch: ...

    def tolerated(self, start: int, count: int) -> float: ...

    def too_many(self, why: str = "") -> TooManyCorruptError: ...


def workers_of(source: object) -> int:
    """The processes that shall read a training plan of ``source``; 0 for one that reads nothing from shards."""
    return source.workers if isinstance(source, ShardSource) else 0


@dataclass(frozen=True)
class Request:
    """A batch that is asked for, the corrupt items that are tolerated by then, and the memory that it goes to."""

    start: int
    count: int
    tolerated: float
    slot: int


@dataclass(frozen=True)
class Reply:
    """The places of a batch, or the error instead, and what was met on the way."""

    places: Batch | None
    error: Exception | None
    counts: Counts


class WorkerPool(Generic[T]):
    """Iterates over what ``take`` makes of the batches of ``plan`` (start, count) of ``stream``, which ``size`` processes read.

    ``take`` copies: the memory of a batch is used again. One thread iterates, another may close.

    Raises:
        SleepFMError: what the stream raised, in the order of the plan.
        LostWorkerError: a process is gone.
    """

    def __init__(self, stream: ShardSource, plan: Iterable[tuple[int, int]], size: int, take: Callable[[Batch], T]) -> None:
        self._stream, self._plan, self._size, self._take = stream, iter(plan), size, take
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        stream.report.elsewhere = self._reading

    def __iter__(self) -> Iterator[T]:
        self._start()
        if self._closed:
            return
        asked: deque[Request] = deque()
        for number in range(self._size * AT_ONCE):
            self._ask(number, asked)
        number = 0
        while asked:
            request, worker = asked.popleft(), self._workers[number % self._size]
            batch = worker.slots[request.slot].read(self._places(worker, request))
            item = self._take(batch)
            # Of the same process, whose slot is free now.
            self._ask(number + self._size * AT_ONCE, asked)
            number += 1
            yield item

    def close(self) -> None:
        """End the processes, also in the middle of a read."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for worker in self._workers:
                worker.control.close()
        self._stream.report.elsewhere = str
        until = time.monotonic() + _END_SECONDS
        for worker in self._workers:
            worker.end(until)

    def _start(self) -> None:
        for number in range(self._size):
            with self._lock:
                if self._closed:
                    return
                self._workers.append(_Worker(number))
        stream = pickle.dumps(self._stream)
        for worker in self._workers:
            worker.send(stream)

    def _ask(self, number: int, asked: deque[Request]) -> None:
        """Ask for the batch ``number`` of the plan, where there is one more."""
        position = next(self._plan, None)
        if position is None:
            return
        request = Request(*position, self._stream.tolerated(*position), number // self._size % AT_ONCE)
        self._workers[number % self._size].send(pickle.dumps(request))
        asked.append(request)

    def _places(self, worker: _Worker, request: Request) -> Batch:
        reply = worker.reply()
        report = self._stream.report
        report.add(reply.counts)
        # A process knows what it has met itself, here it is known of all.
        if report.skipped > request.tolerated:
            raise self._stream.too_many()
        if isinstance(reply.error, TooManyCorruptError):
            raise self._stream.too_many(reply.error.why)
        if reply.error is not None:
            raise reply.error
        assert reply.places is not None
        return reply.places

    def _reading(self) -> str:
        """What each process is reading, where it reads."""
        with self._lock:
            if self._closed:
                return ""
            for worker in self._workers:
                worker.ask_what_it_reads()
            until = time.monotonic() + _ANSWER_SECONDS
            found = [(worker.number, worker.what_it_reads(until)) for worker in self._workers]
        return ", ".join(f"process {number}: {text}" for number, text in found if text)


class _Worker:
    """One of the processes, as seen by the one that started it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._requests, theirs = Pipe()
        self.control, control = Pipe()
        self.slots = [SharedMemory() for _ in range(AT_ONCE)]
        self._asked = False
        self._silent = "starting"
        handles = [theirs.fileno(), control.fileno(), *(slot.handle for slot in self.slots)]
        # What this process imports, and nothing that lies in the folder that it works in.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        # From its first instruction on: a process inherits which signals are kept from it.
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_OTHERS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sleepfm.data.worker", *map(str, handles)],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=handles,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
            # Only there, so that this side sees it when that process is gone.
            theirs.close()
            control.close()

    def send(self, content: bytes) -> None:
        """Raises :class:`LostWorkerError`."""
        try:
            self._requests.send_bytes(content)
        except OSError as error:
            raise self._lost() from error

    def reply(self) -> Reply:
        """The answer to the oldest request. Raises :class:`LostWorkerError`."""
        try:
            reply: Reply = pickle.loads(self._requests.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost() from error
        self._silent = _NO_ANSWER
        return reply

    def ask_what_it_reads(self) -> None:
        """Once, until it answers."""
        if self._asked:
            # The answer to a question of long ago says nothing of now.
            self.what_it_reads(0.0)
        if not self._asked:
            with suppress(OSError):
                self.control.send_bytes(b"?")
                self._asked = True

    def what_it_reads(self, until: float) -> str:
        """Its answer by then."""
        if not wait([self.control], max(0.0, until - time.monotonic())):
            return self._silent
        try:
            text = self.control.recv_bytes().decode()
        except (EOFError, OSError):
            return "has ended"
        self._asked, self._silent = False, _NO_ANSWER
        return text

    def end(self, until: float) -> None:
        """See it end, and give back what it held."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Stopped, or in a read that does not come back.
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._requests.close()
        for slot in self.slots:
            slot.close()

    def _lost(self) -> LostWorkerError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        status = self._process.returncode
        how = _NO_ANSWER if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        killed = "; if it was for lack of memory, lower data.workers" if status == -signal.SIGKILL else ""
        return LostWorkerError(f"process {self.number} of those that read data (pid {self._process.pid}) {how}{killed}")
