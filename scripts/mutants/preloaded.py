"""Runs tests in forks of a process that has imported the libraries, which takes longer than most tests.

A job is a line of JSON on standard input: ``arguments`` of pytest, ``environment`` to add, ``log`` and ``limit`` in seconds. The
answer is a line with the exit status, or with ``out of time``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time

# Of the project itself nothing may be here: its modules are what changes.
LIBRARIES = (
    "torch",
    "scipy.signal",
    "scipy.stats",
    "pandas",
    "pyarrow",
    "sklearn.metrics",
    "pydantic",
    "omegaconf",
    "hypothesis",
)


def main() -> None:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            # What the tests need they miss themselves.
            continue
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(job)
        answers.write(_wait(child, job["limit"]) + "\n")


def _run(job: dict[str, object]) -> None:
    status = 3
    try:
        os.setsid()
        log = os.open(str(job["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(stream, target)
        os.environ.update(job["environment"])  # type: ignore[call-overload]
        import pytest

        status = int(pytest.main(job["arguments"]))  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        os._exit(status)


def _wait(child: int, limit: float) -> str:
    if (status := _waited(child, limit)) is not None:
        return str(status)
    # First so that fixtures can clear up.
    os.kill(child, signal.SIGINT)
    if _waited(child, 20.0) is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return "out of time"


def _waited(child: int, limit: float) -> int | None:
    """Exit status of ``child``; None when it takes longer, or when nobody waits for the answer any more."""
    end, asked_by = time.monotonic() + limit, os.getppid()
    while time.monotonic() < end and os.getppid() == asked_by:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return None


if __name__ == "__main__":
    main()
