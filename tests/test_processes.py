"""Processes of a pool end with the process that they work for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROGRAM = """
import time
from sleepfm.processes import process_pool

if __name__ == "__main__":
    with process_pool(2) as pool:
        # Both are there once each has work.
        list(pool.map(time.sleep, [0.3, 0.3]))
        print(*pool._processes, flush=True)
        time.sleep(60)
"""


def test_killed_with_work_to_wait_for_it_leaves_no_process(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(worker.is_running() for worker in workers)
        process.kill()
    until = time.monotonic() + 20
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < until, "they wait for ever"
        time.sleep(0.1)


INTERRUPTED = """
import sys, time
from sleepfm.console import exit_with
from sleepfm.processes import process_pool

def work():
    with process_pool(2) as pool:
        list(pool.map(time.sleep, [0.2, 0.2]))
        print("ready", flush=True)
        # One has work, the other waits for some.
        list(pool.map(time.sleep, [600]))

if __name__ == "__main__":
    sys.exit(exit_with(work))
"""


def test_interrupted_they_leave_the_word_to_the_command(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whatever started the tests may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    # As a terminal does.
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (said, process.returncode) == ("interrupted\n", 130)
