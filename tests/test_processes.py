"""Processes of a pool end with the process that they work for."""

from __future__ import annotations

import subprocess
import sys
import time

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
